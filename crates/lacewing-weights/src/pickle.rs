//! Pickles as data: the values a pickle program describes, without running what it names.
//!
//! Values live in one arena and refer to each other by number, so that what a program shares stays shared, a cycle
//! is a number like any other, and nothing recurses. Text and bytes are borrowed from the program.

mod machine;
mod operand;

pub(crate) use machine::run;

/// The number of a value in its [`Heap`].
pub(crate) type Id = u32;

/// One value. What a program calls that is not known here becomes an [`Node::Object`] that does nothing.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float,
    /// An integer beyond 64 bits, little endian.
    Long(&'a [u8]),
    Text(&'a str),
    /// Bytes, and text in another encoding than UTF-8.
    Bytes,
    /// Lists and sets.
    List(Vec<Id>),
    /// A range of the heap's pool.
    Tuple(u32, u32),
    Dict(Vec<(Id, Id)>),
    /// Module and name.
    Global(Id, Id),
    /// A reference to something beside the pickle: a storage, or in old files a tensor.
    Persistent(Id),
    Tensor(TensorNode),
    /// The result of an unknown call, with the items that were set on it.
    Object(Id, Vec<(Id, Id)>),
}

/// The arguments of `torch._utils._rebuild_tensor*`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorNode {
    pub(crate) storage: Id,
    pub(crate) offset: Id,
    pub(crate) size: Id,
    pub(crate) stride: Id,
    /// Where it is not that of the storage.
    pub(crate) dtype: Option<Id>,
}

/// All values of one pickle.
#[derive(Debug, Default)]
pub(crate) struct Heap<'a> {
    nodes: Vec<Node<'a>>,
    pool: Vec<Id>,
}

impl<'a> Heap<'a> {
    pub(crate) fn get(&self, id: Id) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    pub(crate) fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

    pub(crate) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::List(items) => Some(items),
            Node::Tuple(start, len) => Some(&self.pool[*start as usize..][..*len as usize]),
            _ => None,
        }
    }

    /// The items of a dict, or of an object that behaves as one.
    pub(crate) fn items(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Node::Dict(items) | Node::Object(_, items) => Some(items),
            _ => None,
        }
    }

    /// Module and name of a global.
    pub(crate) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Node::Global(module, name) => Some((self.text(*module)?, self.text(*name)?)),
            _ => None,
        }
    }

    /// What a value is, for an error.
    pub(crate) fn kind(&self, id: Id) -> String {
        let class = |id: Id| match self.global(id) {
            Some((module, name)) => crate::error::shown(&format!("{module:.60}.{name:.60}")),
            None => "an unknown class".to_owned(),
        };
        match self.get(id) {
            Node::None => "None".into(),
            Node::Bool(value) => format!("the truth value {value}"),
            Node::Int(value) => value.to_string(),
            Node::Float => "a float".into(),
            Node::Long(bytes) => format!("an integer of {} bytes", bytes.len()),
            Node::Text(text) => format!("the text {:?}", crate::error::shown(text)),
            Node::Bytes => "bytes".into(),
            Node::List(items) => format!("a list of {}", items.len()),
            Node::Tuple(_, len) => format!("a tuple of {len}"),
            Node::Dict(items) => format!("a dict of {}", items.len()),
            Node::Global(..) => format!("the name {}", class(id)),
            Node::Persistent(_) => "a persistent id".into(),
            Node::Tensor(_) => "a tensor".into(),
            Node::Object(of, _) => format!("an object of {}", class(*of)),
        }
    }
}
