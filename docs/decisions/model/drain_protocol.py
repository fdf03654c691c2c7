"""Explicit-state check of the drain/forward/fencing protocol of docs/architecture.md (2 proxies, 2 controllers, ticks of 1 s).

Finds a run in which the cloud stops the GPU under a request in flight, or none. Usage: drain_protocol.py DRAIN_TICKS [nolockrule] [noepoch] [stale] [intr [noask]] [lie [believed]] [block [owned]] [lost [unvouched] [olddrain] [oldstop]] [frozen [doubted]] [vanish [ghosts]] [trusted]

intr: the cloud takes the instance back: no way back to ready, only work keeps it from stopping, and a part of running work is
forwarded in `draining` with an in-flight lease in the same breath (noask: without it, by the snapshot alone: a violation).
lie: an answer of the cloud leaves the running instance out; its agent reports, so nobody believes it (believed: whoever leads does,
and drops the leases of the work; what is then found running is stopped: a violation).
block: a proxy's event loop stands still for as long as it likes; a thread renews its in-flight lease (owned: only the loop does: a
violation).
lost: the store is emptied under work, or a stale replica takes its place that shows a drain or a stop begun long ago; proxies renew
what they hold, which counts once the instance is taken over. It is taken over into a drain, and a drain begins anew with what is known
of it (unvouched: what is found running is stopped at once; olddrain: the drain counts from when it began; oldstop: who leads finishes
a stop that somebody else began: violations).
frozen: the agent is silent and no request in flight is answered, so the node is given up (failed). Bytes may come again at any time;
the stop waits until each request was ended by its own proxy (doubted: it waits for no request that was silent: a violation).
vanish: an instance vanishes without a word; its requests stay open, but count for nothing on the next (ghosts: a proxy renews its
lease for any request: they keep the next on, a violation).
trusted: steps ahead of the store's clock are not absorbed, so that at any moment leases and the lock expire and a drain is over
(a violation; absorbed, a step changes nothing here).
"""
import sys
from collections import deque
D = int(sys.argv[1]); LOCKRULE = "nolockrule" not in sys.argv; STALE = "stale" in sys.argv; INTR = "intr" in sys.argv; ASK = "noask" not in sys.argv; EPOCH = "noepoch" not in sys.argv
LIE = "lie" in sys.argv; BELIEVED = "believed" in sys.argv; BLOCK = "block" in sys.argv; OWNED = "owned" in sys.argv
LOST = "lost" in sys.argv; UNVOUCHED = "unvouched" in sys.argv; OLDDRAIN = "olddrain" in sys.argv; OLDSTOP = "oldstop" in sys.argv; TRUSTED = "trusted" in sys.argv
FROZEN = "frozen" in sys.argv; DOUBTED = "doubted" in sys.argv; VANISH = "vanish" in sys.argv; GHOSTS = "ghosts" in sys.argv
MOVING, SILENT, OUTLIVED = 1, 2, 3  # a request in flight
PROXIES = (0,) if VANISH else (0, 1); CONTROLLERS = (0,) if FROZEN else (0, 1)  # or there are millions of states
S = W = 1; I = 1; IL = 2; LOCK = 2
# state: phase, tdrain, owner, ttl, cloud, L, (IL0,IL1), ((ph,age),)*2, (infl,)*2, (dirty,)*2, (held,)*2, (pc0,pc1)
init = ("off", 0, None, 0, "stopped", 0, (0, 0), (("off", 0),) * 2, (0, 0), (-1, -1), (0, 0), (None, None))
def rep(t, i, v): return t[:i] + (v,) + t[i + 1:]
def leases(L, il): return L > 0 or any(il)
def succ(s):
    ph, td, own, ttl, cl, L, il, sn, fl, di, he, pc = s
    # tick: live proxies write back within W and renew in-flight leases
    if all(d < W for d in di):
        yield "tick", (ph, min(td + 1, D) if ph in ("draining", "failed") or LIE and ph == "off" else 0, own if ttl > 1 else None, max(ttl - 1, 0), cl, max(L - 1, 0),
            tuple(max(x - 1, 0) if not (fl[p] and di[p] < 0) or ph == "off" else x for p, x in enumerate(il)),
            tuple((a, min(b + 1, S + 1)) for a, b in sn), fl, tuple(d + 1 if d >= 0 else d for d in di), he, pc)
        if BLOCK and OWNED and any(fl):  # proxies whose loops stand still: none renews
            yield "blocked tick", (ph, min(td + 1, D) if ph == "draining" else 0, own if ttl > 1 else None, max(ttl - 1, 0), cl, max(L - 1, 0),
                tuple(max(x - 1, 0) for x in il), tuple((a, min(b + 1, S + 1)) for a, b in sn), fl, di, he, pc)
    for p in PROXIES:
        a, age = sn[p]
        if (a, age) != (ph, 0): yield f"refresh{p}", (ph, td, own, ttl, cl, L, il, rep(sn, p, (ph, 0)), fl, di, he, pc)
        fresh = age <= S or STALE
        if not fl[p] and not he[p] and fresh:
            if a == "ready": yield f"forward{p}", (ph, td, own, ttl, cl, L, il, sn, rep(fl, p, 1), rep(di, p, 0), he, pc)
            elif a == "draining" and INTR:
                if not ASK: yield f"finish{p}", (ph, td, own, ttl, cl, L, il, sn, rep(fl, p, 1), rep(di, p, 0), he, pc)
                elif ph in ("draining", "ready"): yield f"finish{p}", (ph, td, own, ttl, cl, L, rep(il, p, IL), sn, rep(fl, p, 1), di, he, pc)
            elif a == "draining":
                if ph in ("draining", "ready"): yield f"rescue{p}", ("ready", 0, own, ttl, cl, I, rep(il, p, IL), rep(sn, p, ("ready", 0)), rep(fl, p, 1), di, he, pc)
                else: yield f"wake{p}", (ph, td, own, ttl, cl, I, il, rep(sn, p, (ph, 0)), fl, di, rep(he, p, 1), pc)
            else: yield f"wake{p}", (ph, td, own, ttl, cl, I, il, rep(sn, p, (ph, 0)), fl, di, rep(he, p, 1), pc)
        if he[p]:
            if ph == "ready": yield f"release{p}", (ph, td, own, ttl, cl, I, rep(il, p, IL), rep(sn, p, (ph, 0)), rep(fl, p, 1), di, rep(he, p, 0), pc)
            elif L < I: yield f"hold{p}", (ph, td, own, ttl, cl, I, il, sn, fl, di, he, pc)
        if LOST and fl[p] and ph in ("off", "stopping"):
            if di[p] == W: yield f"in vain{p}", (ph, td, own, ttl, cl, L, il, sn, fl, rep(di, p, 0), he, pc)
        elif di[p] >= 0: yield f"write{p}", (ph, td, own, ttl, cl, I, rep(il, p, IL if fl[p] and (fl[p] != OUTLIVED or GHOSTS) else 0), sn, fl, rep(di, p, -1), he, pc)
        if FROZEN and fl[p] == MOVING: yield f"silent{p}", (ph, td, own, ttl, cl, L, il, sn, rep(fl, p, SILENT), di, he, pc)
        if FROZEN and fl[p] == SILENT: yield f"byte{p}", (ph, td, own, ttl, cl, L, il, sn, rep(fl, p, MOVING), di, he, pc)
        if fl[p]: yield f"end{p}", (ph, td, own, ttl, cl, L, il, sn, rep(fl, p, 0), rep(di, p, 0) if di[p] < 0 else di, he, pc)
    if TRUSTED: yield "step ahead", (ph, D if ph == "draining" else 0, None, 0, cl, 0, (0, 0), sn, fl, di, he, pc)
    if LOST and cl == "running" and ph in ("ready", "draining") and any(fl):
        again = tuple(0 if f and d < 0 else d for f, d in zip(fl, di))  # their next renewal
        yield "emptied", ("off", 0, None, 0, cl, 0, (0, 0), sn, fl, again, he, (None, None))
        yield "stale replica", ("draining", D if OLDDRAIN else 0, None, 0, cl, 0, (0, 0), sn, fl, again, he, (None, None))
        yield "stale stop", ("stopping", 0, None, 0, cl, 0, (0, 0), sn, fl, again, he, (None, None))
    if VANISH and cl == "running" and ph == "ready" and any(fl):
        yield "vanish", (ph, td, own, ttl, "stopped", L, il, sn, tuple(f and SILENT for f in fl), di, he, pc)
    for c in CONTROLLERS:
        if own is None: yield f"lock{c}", (ph, td, c, LOCK, cl, L, il, sn, fl, di, he, rep(pc, c, None) if EPOCH else pc)
        if own == c and ttl < LOCK: yield f"renew{c}", (ph, td, c, LOCK, cl, L, il, sn, fl, di, he, pc)
        if LIE and BELIEVED and own == c and pc[c] is None and ph in ("ready", "draining") and cl == "running":
            yield f"believe{c}", ("off", 0, own, ttl, cl, L, (0, 0), sn, fl, di, he, pc)
        want = leases(L, il)
        work = any(il)
        if own == c and pc[c] is None:
            if ph == "off" and want: yield f"starting{c}", ("starting", 0, own, ttl, cl, L, il, sn, fl, di, he, rep(pc, c, "start"))
            if LIE and ph == "off" and cl == "running" and not want and td >= D: yield f"found{c}", ("stopping", 0, own, ttl, cl, L, il, sn, fl, di, he, rep(pc, c, "stop"))
            if LOST and ph == "off" and cl == "running" and not want:
                yield f"found{c}", ("stopping" if UNVOUCHED else "draining", 0, own, ttl, cl, L, il, sn, fl, di, he, rep(pc, c, "stop") if UNVOUCHED else pc)
            if ph == "starting" and cl == "stopped": yield f"restart{c}", (ph, td, own, ttl, cl, L, il, sn, fl, di, he, rep(pc, c, "start"))
            if ph == "starting" and cl == "running": yield f"ready{c}", ("ready", 0, own, ttl, cl, L, il, sn, fl, di, he, pc)
            if ph == "ready" and (INTR or not want): yield f"drain{c}", ("draining", 0, own, ttl, cl, L, il, sn, fl, di, he, pc)
            if FROZEN and ph == "ready" and any(fl) and MOVING not in fl: yield f"lost{c}", ("failed", 0, own, ttl, cl, L, il, sn, fl, di, he, pc)
            if ph == "failed" and td >= D and (not work or DOUBTED and MOVING not in fl):
                yield f"stopping{c}", ("stopping", 0, own, ttl, cl, L, il, sn, fl, di, he, rep(pc, c, "stop"))
            if VANISH and ph == "ready" and cl == "stopped":
                yield f"gone{c}", ("off", 0, own, ttl, cl, L, (0, 0), sn, tuple(f and OUTLIVED for f in fl), di, he, pc)
            if ph == "draining" and want and not INTR: yield f"undrain{c}", ("ready", 0, own, ttl, cl, L, il, sn, fl, di, he, pc)
            if ph == "draining" and not (work if INTR else want) and td >= D: yield f"stopping{c}", ("stopping", 0, own, ttl, cl, L, il, sn, fl, di, he, rep(pc, c, "stop"))
            if ph == "stopping" and cl == "running":
                yield f"restop{c}", ("stopping" if OLDSTOP else "draining", 0, own, ttl, cl, L, il, sn, fl, di, he, rep(pc, c, "stop") if OLDSTOP else pc)
            if ph == "stopping" and cl == "stopped": yield f"off{c}", ("off", 0, own, ttl, cl, L, il, sn, fl, di, he, pc)
        if pc[c]:
            ok = own == c and ttl > 0 or not LOCKRULE
            n = rep(pc, c, None)
            if not ok: yield f"abandon{c}", (ph, td, own, ttl, cl, L, il, sn, fl, di, he, n)
            elif pc[c] == "start": yield f"CLOUD START by {c}", (ph, td, own, ttl, "running", L, il, sn, fl, di, he, n)
            else: yield f"CLOUD STOP by {c}", (ph, td, own, ttl, "stopped", L, il, sn, fl, di, he, n)
seen = {init: None}; q = deque([init])
while q:
    s = q.popleft()
    for name, t in succ(s):
        cut = name.startswith("CLOUD STOP") and s[4] == "running" and MOVING in s[8]
        ghost = t[0] == "ready" and any(f == OUTLIVED and i for f, i in zip(t[8], t[6]))
        if cut or ghost:
            path = [name]; 
            while s is not None and seen[s] is not None: path.append(seen[s][1]); s = seen[s][0]
            print(f"VIOLATION after {len(seen)} states:", " > ".join(reversed(path))); sys.exit(1)
        if t not in seen: seen[t] = (s, name); q.append(t)
print(f"no violation in {len(seen)} states (drain {D}, lock rule {LOCKRULE}, epoch rule {EPOCH}, stale use {STALE})")
