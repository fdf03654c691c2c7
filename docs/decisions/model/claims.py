"""Explicit-state check of claims: two deployments name one instance (docs/architecture.md, ticks of 5 s).

Finds a run in which a deployment stops the instance under work of the other, or none. Usage: claims.py [noclaim] [late]

An instance is off, boots for BOOT ticks or is on. A deployment looks at it and its claim, writes its own where there
is none, looks again, and starts, uses or stops the instance only by a look that shows its own claim. It does not look
while its work runs, and a claim on its way arrives up to WRITE ticks after the look that it is based on.
noclaim: nobody claims. late: a claim may arrive after a boot. Each is a violation. That who has written looks again
before it starts saves a start, but is not needed for this.
"""
import sys
from collections import deque
CLAIM = "noclaim" not in sys.argv
WRITE, BOOT, FRESH, IDLE = (4 if "late" in sys.argv else 1), 3, 1, 2
BOTH = (0, 1)
# A deployment: what it knows ("nothing", "free": no claim, "mine", "theirs"), age of that look, saw it on, work, idle ticks
init = ("off", 0, None, (("nothing", 0, False, 0, 0),) * 2)
def put(t, i, v): return t[:i] + (v,) + t[i + 1:]
def succ(s):
    vm, boot, tag, ds = s
    if all(k != "free" or age < WRITE for k, age, *_ in ds):  # a call that takes longer has failed
        yield "tick", ("on" if vm == "boots" and boot + 1 >= BOOT else vm, min(boot + 1, BOOT) if vm == "boots" else 0, tag,
            tuple((k, min(age + 1, 4), saw, w, min(i + 1, IDLE) if vm == "on" and saw and not w else 0) for k, age, saw, w, i in ds))
    for d in BOTH:
        k, age, saw, w, i = ds[d]
        if not w and k != "free":
            known = "mine" if tag in (d, None) and not CLAIM or tag == d else "free" if tag is None else "theirs"
            yield f"look{d}", (vm, boot, tag, put(ds, d, (known, 0, vm == "on", w, i if vm == "on" else 0)))
        if k == "free":
            yield f"claim{d}", (vm, boot, d, put(ds, d, ("nothing", 0, saw, w, i)))
            yield f"fail{d}", (vm, boot, tag, put(ds, d, ("nothing", 0, False, w, 0)))
        if k != "mine": continue
        if vm == "off" and age <= FRESH: yield f"start{d}", ("boots", 0, tag, ds)
        if vm == "on" and saw and not w: yield f"work{d}", (vm, boot, tag, put(ds, d, (k, age, saw, 1, 0)))
        if w: yield f"done{d}", (vm, boot, tag, put(ds, d, (k, age, saw, 0, 0)))
        if vm == "on" and saw and not w and i >= IDLE and age <= FRESH:
            yield f"stop{d}", ("off" if not ds[1 - d][3] else "CUT", 0, tag, put(ds, d, ("nothing", 0, False, 0, 0)))
seen = {init: None}; q = deque([init]); bad = None
while q and bad is None:
    s = q.popleft()
    for name, t in succ(s):
        if t not in seen:
            seen[t] = (s, name); q.append(t)
            if t[0] == "CUT": bad = t; break
if bad is None: print(f"no violation in {len(seen)} states")
else:
    run = []
    while seen[bad]: bad, name = seen[bad]; run.append((name, bad))
    print("VIOLATION:", *(f"{name:8} {state}" for name, state in reversed(run)), sep="\n")
