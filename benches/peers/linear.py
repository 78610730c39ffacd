"""Other libraries' linear layers beside `lacewing bench --peers`: the same cases, timed and checked the same way.

`lacewing bench --peers VENV` holds this text and runs it, behind that of protocol.py, with the VENV's Python; see
README.md for the environment.

Settings beside those of protocol.py: {direction}. Cases: {structure, density, n_in, n_out, rows, dense, block, mask,
seed}. `dense` says which products are asked for: true, those by a dense W, which are the same for every structure, so
that one case serves all that are timed next; false, those by the stored places of W. `mask` is null where `dense` is
true or W has no such places, else these, [n_out, n_in] row-major, packed bits in hexadecimal; `block` is null or [rows,
columns] of a block.

A row, {peer, structure, density, n_in, n_out, rows, dtype, device, direction, ms, ms_spread, kernel}, is a measurement.
x is [rows, n_in], y = x Wᵀ.
"""

import functools
import importlib.util
import math
import time

#: After a case, until the libraries' threads have stopped waiting for more work.
SETTLE_S = 0.2
#: Rows at most whose outputs and input gradients are checked.
CHECKED_ROWS = 64
#: Unit roundoff of f32.
UNIT = 2.0**-24


class Case:
    """Weight, input and output gradient of one case."""

    def __init__(self, np, fields, training):
        self.np, self.fields, self.training = np, fields, training
        n_in, n_out, rows = (fields[key] for key in ("n_in", "n_out", "rows"))
        random = np.random.default_rng(fields["seed"])
        draw = lambda *shape: random.uniform(-1.0, 1.0, shape).astype(np.float32)
        self.x, self.dy, self.w = draw(rows, n_in), draw(rows, n_out), draw(n_out, n_in)
        self.block, self.mask = fields["block"], None
        if not fields["dense"]:
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(fields["mask"]), np.uint8), count=n_in * n_out)
            self.mask = bits.reshape(n_out, n_in).astype(bool)
            self.w *= self.mask

    @functools.cached_property
    def expected(self):
        """[(values, sums of absolute products, operations)] of y, and of dx and dW for a training step, in f64."""
        w, x, dy = (a.astype(self.np.float64) for a in (self.w, self.x, self.dy))
        few = self.few()
        pairs = [(x[few], w.T)]
        if self.training:
            pairs += [(dy[few], w), (dy.T, x)]
        return [(a @ b, abs(a) @ abs(b), a.shape[1]) for a, b in pairs]

    def few(self):
        """The rows that are checked: evenly spaced, the last among them."""
        rows = self.fields["rows"]
        return self.np.arange(rows - 1, -1, -math.ceil(rows / CHECKED_ROWS))

    def mistake(self, found):
        """What is wrong with `found`, (y,) or (y, dx, dW), or None: each value within γ of the f64 product."""
        np = self.np
        names = ("y", "dx", "dW")
        for name, got, (values, sums, k) in zip(names, found, self.expected):
            got = np.asarray(got, np.float64)
            if name != "dW":
                got = got[self.few()]
            elif self.mask is not None:
                # Only stored weights have a gradient.
                got, values = got * self.mask, values * self.mask
            ku = (k + 4) * UNIT
            wrong = ~(abs(got - values) <= ku / (1.0 - ku) * sums + k * 2.0**-126)
            if got.shape != values.shape or wrong.any():
                at = tuple(int(i) for i in np.argwhere(wrong)[0])
                return f"wrong: {name}{list(at)} is {got[at]}, not {values[at]}"
        if len(found) != len(self.expected):
            return "wrong: no gradients"
        return None


class Forward(Exception):
    """A training step of a library without gradients."""

    def __str__(self):
        return "no gradients"


def forward_only(case):
    if case.training:
        raise Forward


# A peer takes a case and gives None where it has nothing for it, else (pass, result): `pass()` computes once,
# `result()` gives (y,), or (y, dx, dW) in a training step.


def torch_layer(case, w, linear, columns=False):
    """A pass through `linear(x, w)`, in a training step with both gradients; with `columns` x is [n_in, rows]."""
    import torch

    turn = (lambda a: case.np.ascontiguousarray(a.T)) if columns else (lambda a: a)
    x = torch.from_numpy(turn(case.x))
    if not case.training:
        # Sparse tensors know no inference mode.
        sparse = w.layout in (torch.sparse_csr, torch.sparse_bsr)
        mode = torch.no_grad if sparse else torch.inference_mode

        def forward():
            with mode():
                return linear(x, w)

        return forward, lambda: (turn(forward().numpy()),)
    x, w = x.requires_grad_(), w.detach().requires_grad_()
    dy = torch.from_numpy(turn(case.dy))

    def step():
        x.grad = w.grad = None
        y = linear(x, w)
        y.backward(dy)
        return y

    def result():
        y = step()
        dw = w.grad if w.grad.layout == torch.strided else w.grad.to_dense()
        return turn(y.detach().numpy()), turn(x.grad.numpy()), dw.numpy()

    return step, result


def columns(x, w):
    return w @ x


def torch_dense(np, case, threads):
    import torch

    return torch_layer(case, torch.from_numpy(case.w), torch.nn.functional.linear)


def torch_packed(np, case, threads):
    """Weights in oneDNN's own order, as compiled and frozen models have them."""
    import torch

    forward_only(case)
    w = torch.ops.mkldnn._reorder_linear_weight(torch.from_numpy(case.w), case.fields["rows"])
    return torch_layer(case, w, lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))


def torch_csr(np, case, threads):
    import torch

    w = torch.from_numpy(case.w).to_sparse_csr()
    return torch_layer(case, w, torch.nn.functional.linear)


def torch_csr_columns(np, case, threads):
    """What the library's product takes without a copy."""
    import torch

    return torch_layer(case, torch.from_numpy(case.w).to_sparse_csr(), columns, columns=True)


def bsr(case):
    import torch

    if case.block is None or min(case.block) == 1:
        return None
    return torch.from_numpy(case.w).to_sparse_bsr(tuple(case.block))


def torch_bsr(np, case, threads):
    import torch

    w = bsr(case)
    return None if w is None else torch_layer(case, w, torch.nn.functional.linear)


def torch_bsr_columns(np, case, threads):
    w = bsr(case)
    return None if w is None else torch_layer(case, w, columns, columns=True)


def numpy_dense(np, case, threads):
    forward_only(case)
    forward = lambda: case.x @ case.w.T
    return forward, lambda: (forward(),)


def scipy_csr(np, case, threads):
    from scipy import sparse

    forward_only(case)
    w, x = sparse.csr_matrix(case.w), np.ascontiguousarray(case.x.T)
    return lambda: w @ x, lambda: ((w @ x).T,)


def onnx_model(case):
    """y = x W as an ONNX file of one product."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows, n_in, n_out = (case.fields[key] for key in ("rows", "n_in", "n_out"))
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    w = numpy_helper.from_array(case.np.ascontiguousarray(case.w.T), "w")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "linear", [value("x", [rows, n_in])], [value("y", [rows, n_out])], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def onnxruntime_dense(np, case, threads):
    import onnxruntime

    forward_only(case)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
    forward = lambda: session.run(None, {"x": case.x})[0]
    return forward, lambda: (forward(),)


def openvino_dense(np, case, threads):
    import openvino
    from openvino import opset13 as ops

    forward_only(case)
    rows, n_in = case.fields["rows"], case.fields["n_in"]
    x = ops.parameter([rows, n_in], np.float32, "x")
    y = ops.matmul(x, ops.constant(case.w), False, True)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(openvino.Model([y], [x], "linear"), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(case.x, shared_memory=True))

    def forward():
        request.infer()
        return request.get_output_tensor().data.copy()

    return lambda: request.infer(), lambda: (forward(),)


#: Products by a dense weight: (library, modules it needs, how it is called, function).
DENSE = [
    ("torch", ["torch"], "F.linear", torch_dense),
    ("torch", ["torch"], "oneDNN packed", torch_packed),
    ("numpy", ["numpy"], "x @ W.T", numpy_dense),
    ("onnxruntime", ["onnxruntime", "onnx"], "MatMul", onnxruntime_dense),
    ("openvino", ["openvino"], "MatMul", openvino_dense),
]

#: Products by stored places, in the same form.
SPARSE = [
    ("torch", ["torch"], "CSR F.linear", torch_csr),
    ("torch", ["torch"], "CSR, [n_in, rows]", torch_csr_columns),
    ("torch", ["torch"], "BSR F.linear", torch_bsr),
    ("torch", ["torch"], "BSR, [n_in, rows]", torch_bsr_columns),
    ("scipy", ["scipy"], "CSR, [n_in, rows], one thread", scipy_csr),
]


def run(settings, versions, fields):
    import numpy as np

    if not fields["dense"] and fields["mask"] is None:
        return
    case = Case(np, fields, settings["direction"] != "forward")
    for library, _, kernel, peer in DENSE if fields["dense"] else SPARSE:
        if library not in versions:
            continue
        name = f"{library} {versions[library]}"
        try:
            if (found := peer(np, case, settings["threads"])) is None:
                continue
            forward, result = found
            if mistake := case.mistake(result()):
                say(peer=name, skipped=f"{kernel}: {mistake}")
                continue
            ms, spread = timed(forward, settings)
        except Exception as error:
            # Whatever a library cannot do is an answer, not the end of the run.
            say(peer=name, skipped=f"{kernel}: {reason(error)}")
            continue
        which = {key: fields[key] for key in ("structure", "density", "n_in", "n_out", "rows")}
        say(peer=name, **which, dtype="f32", device="cpu", direction=settings["direction"], ms=ms, ms_spread=spread,
            kernel=kernel)
    time.sleep(SETTLE_S)


def load(settings):
    # Neither can be done without.
    import numpy
    import torch

    torch.set_num_threads(settings["threads"])
    versions, skipped = {}, {}
    for library, modules, *_ in DENSE + SPARSE:
        try:
            for module in modules:
                if importlib.util.find_spec(module) is None:
                    raise ImportError(f"{module} is not installed")
            versions[library] = version(__import__(library))
        except Exception as error:
            skipped[library] = str(error)
    return versions, skipped


if __name__ == "__main__":
    serve(load, run)
