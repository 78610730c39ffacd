//! The pickle machine: protocols 0 to 5 in one loop over the program; O(program), no recursion.
//!
//! Bounds: every instruction makes at most three values of 32 bytes, so memory is at most about a hundred bytes a byte
//! of program, and at most [`MOST_VALUES`] values in all. What is copied out of shared values is counted against the
//! program's length, so no chain of references can be expanded.

use std::collections::HashMap;

use super::{Heap, Id, Node, TensorNode};
use crate::WeightsError;
use crate::error::shown;

/// The most values of one pickle. A checkpoint has a few for each tensor.
const MOST_VALUES: usize = 1 << 23;

/// Calls in calls, as a tensor subclass in a subclass makes them.
const DEEPEST_CALL: usize = 8;

/// Executes one pickle at the beginning of `program`; its values, the result and the bytes used.
pub(crate) fn run<'a>(file: &str, program: &'a [u8]) -> Result<(Heap<'a>, Id, usize), WeightsError> {
    let heap = Heap::default();
    let mut machine = Machine {
        file,
        program,
        at: 0,
        op_at: 0,
        heap,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    // Shared values of which a program may ask for very many.
    for node in [Node::None, Node::Bool(false), Node::Bool(true), Node::Tuple(0, 0), Node::Bytes, Node::Float]
    {
        machine.heap.nodes.push(node);
    }
    let root = machine.execute()?;
    Ok((machine.heap, root, machine.at))
}

const NONE: Id = 0;
pub(super) const FALSE: Id = 1;
pub(super) const TRUE: Id = 2;
const EMPTY_TUPLE: Id = 3;
pub(super) const BYTES: Id = 4;
const FLOAT: Id = 5;

pub(super) struct Machine<'a, 'f> {
    pub(super) file: &'f str,
    pub(super) program: &'a [u8],
    pub(super) at: usize,
    pub(super) op_at: usize,
    heap: Heap<'a>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    pub(super) memo: HashMap<u64, Id>,
    copied: usize,
}

pub(super) type Step<T> = Result<T, WeightsError>;

impl<'a> Machine<'a, '_> {
    fn execute(&mut self) -> Step<Id> {
        loop {
            self.op_at = self.at;
            let op = self.take(1)?[0];
            match op {
                b'.' => return self.pop(),
                0x80 => {
                    let version = self.take(1)?[0];
                    if version > 5 {
                        return Err(self.wrong("protocol 0 to 5", version.to_string()));
                    }
                }
                // A frame is only a hint for buffering.
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => self.discard()?,
                b'1' => drop(self.pop_mark()?),
                b'2' => self.stack.push(self.top()?),
                b'N' => self.stack.push(NONE),
                0x88 => self.stack.push(TRUE),
                0x89 => self.stack.push(FALSE),
                b')' => self.stack.push(EMPTY_TUPLE),
                b'K' | b'M' | b'J' | b'I' | b'L' | 0x8a | 0x8b => self.integer(op)?,
                b'G' => {
                    self.take(8)?;
                    self.stack.push(FLOAT);
                }
                b'F' => {
                    let line = self.line()?;
                    if line.parse::<f64>().is_err() {
                        return Err(self.wrong("a number", shown(line)));
                    }
                    self.stack.push(FLOAT);
                }
                b'X' | b'T' | b'B' => self.string(op != b'B', 4)?,
                0x8c | b'U' | b'C' => self.string(op != b'C', 1)?,
                0x8d | 0x8e | 0x96 => self.string(op == 0x8d, 8)?,
                b'V' | b'S' => self.text_line(op == b'S')?,
                b']' | 0x8f => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b'l' | b't' | b'd' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.container(op, items)?;
                }
                0x85..=0x87 => {
                    let items = self.pop_some(usize::from(op - 0x84))?;
                    self.container(b't', items)?;
                }
                b'a' => {
                    let items = self.pop_some(1)?;
                    self.extend(items)?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend(items)?;
                }
                b's' => {
                    let items = self.pop_some(2)?;
                    self.set_items(items)?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let (module, name) = (self.add(Node::Text(module))?, self.add(Node::Text(name))?);
                    self.push(Node::Global(module, name))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    if self.heap.text(name).is_none() || self.heap.text(module).is_none() {
                        return Err(self.wrong("two texts", self.heap.kind(name)));
                    }
                    self.push(Node::Global(module, name))?;
                }
                b'R' | 0x81 => {
                    let (args, callable) = (self.pop()?, self.pop()?);
                    self.call(callable, args)?;
                }
                0x92 => {
                    let (_keywords, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                    self.call(callable, args)?;
                }
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let items = self.pop_mark()?;
                    let (module, name) = (self.add(Node::Text(module))?, self.add(Node::Text(name))?);
                    let callable = self.add(Node::Global(module, name))?;
                    self.container(b't', items)?;
                    let args = self.pop()?;
                    self.call(callable, args)?;
                }
                b'o' => {
                    let mut items = self.pop_mark()?;
                    if items.is_empty() {
                        return Err(self.wrong("a class", "nothing"));
                    }
                    let callable = items.remove(0);
                    self.container(b't', items)?;
                    let args = self.pop()?;
                    self.call(callable, args)?;
                }
                // The state that a class would take: what is kept has no class.
                b'b' => {
                    self.pop()?;
                    self.top()?;
                }
                b'P' => {
                    let line = self.line()?;
                    let id = self.add(Node::Text(line))?;
                    self.push(Node::Persistent(id))?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id))?;
                }
                b'p' | b'q' | b'r' | 0x94 => {
                    let slot = self.slot(op)?;
                    let top = self.top()?;
                    self.memo.insert(slot, top);
                }
                b'g' | b'h' | b'j' => {
                    let slot = self.slot(op)?;
                    let Some(&id) = self.memo.get(&slot) else {
                        return Err(self.wrong("a memo slot that was filled", slot.to_string()));
                    };
                    self.stack.push(id);
                }
                _ => {
                    return Err(
                        self.wrong("an instruction of pickle without extensions", format!("{op:#04x}"))
                    );
                }
            }
        }
    }

    pub(super) fn wrong(&self, expected: &str, got: impl Into<String>) -> WeightsError {
        WeightsError::Pickle {
            file: self.file.to_owned(),
            at: self.op_at,
            expected: expected.to_owned(),
            got: got.into(),
        }
    }

    pub(super) fn add(&mut self, node: Node<'a>) -> Step<Id> {
        let id = self.heap.nodes.len();
        if id >= MOST_VALUES {
            return Err(WeightsError::TooLarge {
                file: self.file.to_owned(),
                what: "pickle".into(),
                got: id as u64 + 1,
                limit: MOST_VALUES as u64,
                unit: "values",
            });
        }
        self.heap.nodes.push(node);
        Ok(id as Id)
    }

    pub(super) fn push(&mut self, node: Node<'a>) -> Step<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn put(&mut self, id: Id) -> Step<()> {
        self.stack.push(id);
        Ok(())
    }

    /// The height below which the open mark protects the stack.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(self.wrong("a value on the stack", "none")),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Drops a value, or the mark if that is on top.
    fn discard(&mut self) -> Step<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_some(&mut self, count: usize) -> Step<Vec<Id>> {
        if self.stack.len() - self.floor() < count {
            return Err(self.wrong(&format!("{count} values on the stack"), "fewer"));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.wrong("a mark on the stack", "none")),
        }
    }

    /// A list, tuple, dict or frozen set of what was on the stack.
    fn container(&mut self, op: u8, items: Vec<Id>) -> Step<()> {
        match op {
            b't' if items.is_empty() => self.put(EMPTY_TUPLE),
            b't' => {
                let start = self.heap.pool.len();
                let (Ok(place), Ok(len)) = (u32::try_from(start), u32::try_from(items.len())) else {
                    return Err(self.wrong("fewer than 2^32 items", start.to_string()));
                };
                self.heap.pool.extend(items);
                self.push(Node::Tuple(place, len))
            }
            b'd' => {
                self.push(Node::Dict(Vec::new()))?;
                self.set_items(items)
            }
            _ => self.push(Node::List(items)),
        }
    }

    /// Adds to the list on top; what a list-like object holds is not kept.
    fn extend(&mut self, items: Vec<Id>) -> Step<()> {
        let top = self.top()?;
        match &mut self.heap.nodes[top as usize] {
            Node::List(list) => list.extend(items),
            Node::Object(..) => {}
            _ => return Err(self.wrong("a list or set", self.heap.kind(top))),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Step<()> {
        let top = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err(self.wrong("a value for each key", format!("{} of both", items.len())));
        }
        match &mut self.heap.nodes[top as usize] {
            Node::Dict(dict) | Node::Object(_, dict) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(self.wrong("a dict", self.heap.kind(top))),
        }
        Ok(())
    }

    /// What a call stands for. Only these names mean anything; every other makes an object that does nothing.
    fn call(&mut self, mut callable: Id, mut args: Id) -> Step<()> {
        for _ in 0..DEEPEST_CALL {
            let Some(list) = self.heap.sequence(args) else {
                return Err(self.wrong("a tuple of arguments", self.heap.kind(args)));
            };
            let tensor = |dtype| match *list {
                [storage, offset, size, stride, ..] => {
                    Some(TensorNode { storage, offset, size, stride, dtype })
                }
                _ => None,
            };
            let node = match (self.heap.global(callable).unwrap_or_default(), list) {
                (("collections", "OrderedDict"), []) => Node::Dict(Vec::new()),
                (("collections", "OrderedDict"), &[pairs]) => return self.ordered_dict(pairs),
                (("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"), _) => match tensor(None) {
                    Some(tensor) => Node::Tensor(tensor),
                    None => return Err(self.wrong("4 arguments of a tensor", list.len().to_string())),
                },
                (("torch._utils", "_rebuild_tensor_v3"), _) => match tensor(list.get(6).copied()) {
                    Some(tensor) if tensor.dtype.is_some() => Node::Tensor(tensor),
                    _ => return Err(self.wrong("7 arguments of a tensor", list.len().to_string())),
                },
                (("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), &[data, ..])
                | (("torch.nn.parameter", "Parameter" | "Buffer"), &[data, ..])
                | (("torch", "Size"), &[data]) => return self.put(data),
                (("torch._tensor", "_rebuild_from_type_v2"), &[inner, _, inner_args, ..]) => {
                    (callable, args) = (inner, inner_args);
                    continue;
                }
                _ => Node::Object(callable, Vec::new()),
            };
            return self.push(node);
        }
        Err(self.wrong("fewer calls in calls", format!("{DEEPEST_CALL} or more")))
    }

    /// `OrderedDict([[key, value], ..])`, as Python 2 wrote it.
    fn ordered_dict(&mut self, pairs: Id) -> Step<()> {
        let Some(list) = self.heap.sequence(pairs) else {
            // A copy of another dict, or of what is not known: the call does nothing here.
            return self.push(Node::Dict(Vec::new()));
        };
        self.copied += list.len();
        if self.copied > self.program.len() {
            return Err(self.wrong("lists that are copied once", "one copied again and again"));
        }
        let mut items = Vec::with_capacity(list.len());
        for &pair in list {
            match self.heap.sequence(pair) {
                Some(&[key, value]) => items.push((key, value)),
                _ => return Err(self.wrong("pairs of key and value", self.heap.kind(pair))),
            }
        }
        self.push(Node::Dict(items))
    }
}
