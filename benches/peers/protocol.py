"""How programs of other libraries speak with `lacewing bench --peers`, and how they time a pass.

This text comes before that of the program, linear.py or model.py: `python -c` is given both in one. Standard input and
output have one JSON object a line. First come the settings, then case after case. The program answers the settings by
{"ready": versions} or, once and for all, {"missing": module, "reason": text}, and each case by its rows and by
{"peer", "skipped": reason} for what could not be measured or was wrong; {"done": true} ends either answer.

Settings of all programs: {threads, warm_up, min_samples, budget_s, min_sample_s, patience_s, few_samples}.
"""

import json
import math
import os
import sys
import time
import warnings

#: The answers. What a library prints of its own goes to standard error.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(**fields):
    print(json.dumps(fields), file=ANSWERS, flush=True)


def reason(error):
    """The first line of what `error` says."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


def version(module):
    return module.__version__.split("+")[0].split("-")[0]


def quantile(values, share):
    """The value that a share of `values` lies below; linear between neighbours."""
    values = sorted(values)
    at = share * (len(values) - 1)
    low, high = values[math.floor(at)], values[math.ceil(at)]
    return low + (high - low) * (at - math.floor(at))


def timed(forward, settings, wait=lambda: None):
    """Median and middle half of the milliseconds of a pass; `wait` returns when all that was queued has been done."""

    def sample(passes):
        start = time.perf_counter()
        for _ in range(passes):
            forward()
        wait()
        return time.perf_counter() - start

    start = time.perf_counter()
    for _ in range(settings["warm_up"]):
        sample(1)
        if time.perf_counter() - start > settings["patience_s"] / 10:
            break
    passes = 1
    while (seconds := sample(passes)) < settings["min_sample_s"]:
        passes = math.ceil(passes * min(max(1.2 * settings["min_sample_s"] / max(seconds, 1e-9), 1.0), 10.0)) + 1
    samples, start = [], time.perf_counter()

    def enough():
        taken = time.perf_counter() - start
        least = settings["min_samples"] if taken < settings["patience_s"] else settings["few_samples"]
        return len(samples) >= least and taken >= settings["budget_s"]

    while not enough():
        samples.append(1e3 * sample(passes) / passes)
    low, middle, high = (quantile(samples, share) for share in (0.25, 0.5, 0.75))
    return middle, high - low


def serve(load, run):
    """Answers the settings by `load(settings)`, which gives the versions of libraries and why others are skipped, and
    each case by `run(settings, versions, case)`."""
    settings = json.loads(sys.stdin.readline())
    # Libraries read these when they are loaded.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(settings["threads"])
    warnings.filterwarnings("ignore")
    try:
        versions, skipped = load(settings)
    except ImportError as error:
        say(missing=error.name or "torch", reason=str(error))
        return
    say(ready=versions)
    for library, why in skipped.items():
        say(peer=library, skipped=why)
    say(done=True)
    for line in sys.stdin:
        run(settings, versions, json.loads(line))
        say(done=True)
