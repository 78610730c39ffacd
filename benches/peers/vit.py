"""PyTorch's side of `cargo bench -p lacewing-models --bench vit`: the same problems, one JSON row each.

python vit.py block   one ViT-S encoder block, forward + backward, f32, on the CPU with two threads (needs torch)
python vit.py gpu     ViT-B/16 training and inference at batch 256 in bf16, eager and compiled (needs torch and timm)
"""

import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-norm encoder block, as timm's: LN, fused qkv, SDPA, proj; LN, fc1, GELU, fc2."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def row(**values):
    print(json.dumps(values), flush=True)


def block(batch=8, repeats=30):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    net = Block(384, 6)
    x = torch.randn(batch, 197, 384, requires_grad=True)
    dy = torch.randn(batch, 197, 384)

    for compiled in (False, True):
        f = torch.compile(net) if compiled else net

        def step():
            net.zero_grad(set_to_none=True)
            x.grad = None
            f(x).backward(dy)

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(5):
            step()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) * 1e3)
        # The compiler's own memory would be counted, so only the eager run says how much it grew.
        grown = {} if compiled else {"rss_grown_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}
        row(peer=f"torch {torch.__version__} {'compiled' if compiled else 'eager'}", problem="vit_small block", batch=batch,
            ms=statistics.median(times), ms_min=min(times), **grown)


def median_ms(fn, n=12, warm=5):
    for _ in range(warm):
        fn()
    torch.cuda.synchronize()
    times = []
    for _ in range(n):
        a, b = torch.cuda.Event(True), torch.cuda.Event(True)
        a.record()
        fn()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times)


def gpu(name="vit_base_patch16_224", batch=256):
    import timm

    torch.set_float32_matmul_precision("high")
    for compiled in (False, True):
        net = timm.create_model(name, pretrained=False).cuda().train()
        opt = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
        x = torch.randn(batch, 3, 224, 224, device="cuda")
        y = torch.randint(0, 1000, (batch,), device="cuda")
        f = torch.compile(net) if compiled else net

        def step():
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(f(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)

        torch.cuda.reset_peak_memory_stats()
        ms = median_ms(step)
        kind = "compiled" if compiled else "eager"
        row(peer=f"torch {torch.__version__} {kind}", problem=f"{name} train", batch=batch, ms=ms,
            images_per_s=batch / ms * 1e3, peak_gib=torch.cuda.max_memory_allocated() / 2**30)
        net = net.eval().bfloat16()
        x = x.bfloat16()
        f = torch.compile(net) if compiled else net
        with torch.inference_mode():
            ms = median_ms(lambda: f(x))
        row(peer=f"torch {torch.__version__} {kind}", problem=f"{name} infer", batch=batch, ms=ms, images_per_s=batch / ms * 1e3)
        del net, opt, f
        torch.cuda.empty_cache()


if __name__ == "__main__":
    {"block": block, "gpu": gpu}[sys.argv[1]]()
