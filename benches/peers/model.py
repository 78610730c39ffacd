"""Whole models of timm in PyTorch beside `lacewing bench --model NAME --peers`: the same model, dense, eager and compiled.

`lacewing bench --peers VENV` holds this text and runs it, behind that of protocol.py, with the VENV's Python; see
README.md for the environment.

Settings beside those of protocol.py: {device, dtype}. Cases: {model, parameters, n_classes, image, batch, direction, lr}.
`image` is [channels, height, width]. `direction` is "forward", inference, or "training step": forward pass,
cross-entropy against drawn labels, backward pass and a step of fused AdamW with the learning rate `lr`. In bf16
inference has all weights in bf16, and training f32 weights under autocast. A model of timm with another number of
parameters than `parameters` is another model, and skipped.

A row is {peer, kernel, model, batch, dtype, device, direction, ms, ms_spread, peak_bytes}; `kernel` is how the library
was called. `peak_bytes`, of a pass after the first, is what PyTorch's allocator had given out at once: weights,
gradients, moments, pictures, activations, workspaces; null on a CPU, where it does not count. Between cases nothing of
it is kept.
"""

import gc
import importlib.util


class NoModel(Exception):
    """timm does not have the model."""


def network(fields):
    """timm's model with random weights."""
    if importlib.util.find_spec("timm") is None:
        raise NoModel("timm is not installed")
    import timm

    name, (channels, height, width) = fields["model"], fields["image"]
    if not timm.is_model(name):
        raise NoModel(f"timm {version(timm)} has no model {name}")
    net = timm.create_model(name, pretrained=False, num_classes=fields["n_classes"], in_chans=channels)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    if parameters != fields["parameters"]:
        raise NoModel(f"timm's {name} has {parameters} parameters, not {fields['parameters']}")
    return net


def inference(torch, settings, fields, compiled):
    """A pass, which gives the logits."""
    dtype = torch.bfloat16 if settings["dtype"] == "bf16" else torch.float32
    net = network(fields).eval().to(settings["device"], dtype)
    x = torch.randn(fields["batch"], *fields["image"], device=settings["device"], dtype=dtype)
    f = torch.compile(net) if compiled else net

    def forward():
        with torch.inference_mode():
            return f(x)

    return forward


def training(torch, settings, fields, compiled):
    """A training step, which gives the logits."""
    device, batch, n_classes = settings["device"], fields["batch"], fields["n_classes"]
    net = network(fields).train().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=fields["lr"], fused=True)
    x = torch.randn(batch, *fields["image"], device=device)
    y = torch.randint(0, n_classes, (batch,), device=device)
    f = torch.compile(net) if compiled else net
    kind = torch.device(device).type

    def step():
        with torch.autocast(kind, torch.bfloat16, enabled=settings["dtype"] == "bf16"):
            logits = f(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return logits

    return step


def measured(torch, settings, fields, compiled):
    """Median and spread of the milliseconds of a pass, and the most bytes that it held."""
    on_gpu = torch.device(settings["device"]).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(settings["device"])
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    torch.manual_seed(0)
    forward = (training if fields["direction"] == "training step" else inference)(torch, settings, fields, compiled)
    # The first pass compiles and makes what the later ones use.
    logits = forward()
    shape, expected = list(logits.shape), [fields["batch"], fields["n_classes"]]
    if shape != expected or not bool(torch.isfinite(logits).all()):
        raise ValueError(f"wrong: logits are {shape}, not {expected} of finite numbers")
    del logits
    wait()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = timed(forward, settings, wait)
    return *times, torch.cuda.max_memory_allocated() if on_gpu else None


def run(settings, versions, fields):
    import torch

    peer = f"torch {versions['torch']}"
    for kernel, compiled in (("eager", False), ("compiled", True)):
        try:
            ms, spread, peak_bytes = measured(torch, settings, fields, compiled)
        except NoModel as error:
            # However it would be called.
            say(peer=peer, skipped=reason(error))
            return
        except Exception as error:
            # Whatever the library cannot do is an answer, not the end of the run.
            which = f"{kernel}, {fields['direction']}, batch {fields['batch']}"
            say(peer=peer, skipped=f"{which}: {reason(error)}")
        else:
            say(peer=peer, kernel=kernel, model=fields["model"], batch=fields["batch"], dtype=settings["dtype"],
                device=settings["device"], direction=fields["direction"], ms=ms, ms_spread=spread,
                peak_bytes=peak_bytes)
        finally:
            torch.compiler.reset()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def load(settings):
    import torch

    torch.set_num_threads(settings["threads"])
    return {"torch": version(torch)}, {}


if __name__ == "__main__":
    serve(load, run)
