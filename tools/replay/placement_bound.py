#!/usr/bin/env python3
"""What a host tier could hold of an agent trace when it is asked for: bounds for docs/policies.md.

Sessions begin as in `turnkeep replay` (the same draws), sub-agents are left out, and a turn asks for
the prefix that it shares with the one before it. Everything is on disk, and moves take no time.

  exact    the next use is known to the second: what fits into the host tier at all
  hazards  at every moment the host tier has the contexts that are worth most by the trace's own
           hazards of the time from a turn's end to the next turn, as next_use values them (docs),
           with and without classes by stop reason; contexts of running turns leave it, or stay
"""
import argparse
import bisect
import gzip
import heapq
import json
import math

EDGES = [0.0] + [0.1 * 1.5**i for i in range(40)]
MASK = (1 << 64) - 1


class Mt19937_64:
    """std::mt19937_64 (Matsumoto and Nishimura 1998)."""

    def __init__(self, seed):
        self.words = [seed]
        for i in range(1, 312):
            last = self.words[-1]
            self.words.append((6364136223846793005 * (last ^ (last >> 62)) + i) & MASK)
        self.next = 312

    def __call__(self):
        if self.next == 312:
            words = self.words
            for i in range(312):
                x = (words[i] & 0xFFFFFFFF80000000) | (words[(i + 1) % 312] & 0x7FFFFFFF)
                words[i] = words[(i + 156) % 312] ^ (x >> 1) ^ (0xB5026F5AA96619E9 * (x & 1))
            self.next = 0
        x = self.words[self.next]
        self.next += 1
        x ^= (x >> 29) & 0x5555555555555555
        x ^= (x << 17) & 0x71D67FFFEDA60000
        x ^= (x << 37) & 0xFFF7EEE000000000
        return x ^ (x >> 43)


def shared_blocks(a, b):
    """Of two lists of runs [first, count, first, count, …] the length of the common prefix."""
    count = i = j = at_a = at_b = 0
    while i < len(a) and j < len(b) and a[i] + at_a == b[j] + at_b:
        step = min(a[i + 1] - at_a, b[j + 1] - at_b)
        count, at_a, at_b = count + step, at_a + step, at_b + step
        if at_a == a[i + 1]:
            i, at_a = i + 2, 0
        if at_b == b[j + 1]:
            j, at_b = j + 2, 0
    return count


def read(path):
    sessions = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            requests = [r for r in json.loads(line)["requests"] if "requests" not in r]
            sessions.append(sorted(requests, key=lambda r: r["t"]))
    return sessions


def starts_of(sessions, rule, seed):
    kind, value = rule.split(":")
    starts = []
    if kind == "poisson":
        random, at = Mt19937_64(seed), 0.0
        for _ in sessions:
            starts.append(at)
            at -= math.log(((random() >> 11) + 0.5) * 2.0**-53) / float(value)
    elif kind == "users":
        free = [0.0] * int(value)
        for requests in sessions:
            starts.append(heapq.heappop(free))
            end = max(r["t"] + (r.get("api_time") or 0) for r in requests)
            heapq.heappush(free, starts[-1] + end)
    else:
        raise SystemExit(f"--starts: {rule} is not poisson:PER_SECOND or users:N")
    return starts


def waits_of(sessions, starts, limit):
    """(use, begin, end of the turn, blocks, stop reason) of every context that waits for its next
    turn, in the order of these, the first `limit` of them."""
    waits = []
    for requests, start in zip(sessions, starts):
        for a, b in zip(requests, requests[1:]):
            served = min(a.get("api_time") or 0, b["t"] - a["t"])
            blocks = shared_blocks(a["hash_runs"], b["hash_runs"])
            waits.append((start + b["t"], start + a["t"], start + a["t"] + served, blocks,
                          a.get("stop") or ""))
    return sorted(waits)[:limit]


def age_of(seconds):
    return min(bisect.bisect_right(EDGES, seconds) - 1, len(EDGES) - 2)


def worth_by_age(waits):
    """The best rate of uses over any horizon, by age, of hazards weighted by blocks."""
    ages = len(EDGES) - 1
    used = [1e-3] * ages
    for use, _, end, blocks, _ in waits:
        used[age_of(use - end)] += blocks
    reached = [sum(used[i:]) + 1e-3 for i in range(ages)]
    worth = []
    for first in range(ages):
        unused, seconds, best = 1.0, 0.0, 0.0
        for i in range(first, ages):
            after = unused * (1 - used[i] / reached[i])
            seconds += (unused + after) / 2 * (EDGES[i + 1] - EDGES[i])
            unused = after
            best = max(best, (1 - unused) / seconds)
        worth.append(best)
    return worth


def hazard_share(waits, host_blocks, by_stop, running_stays):
    class_of = (lambda stop: stop) if by_stop else (lambda stop: "")
    worth = {c: worth_by_age([w for w in waits if class_of(w[4]) == c])
             for c in {class_of(w[4]) for w in waits}}
    begins = sorted(waits, key=lambda w: w[1])
    waiting, entered, hit = [], 0, 0.0
    for use, _, end, blocks, stop in waits:
        while entered < len(begins) and begins[entered][1] < use:
            waiting.append(begins[entered])
            entered += 1
        waiting = [w for w in waiting if w[0] >= use]
        mine = worth[class_of(stop)][age_of(use - end)]
        before = 0
        for _, _, other_end, other_blocks, other_stop in waiting:
            if other_end > use:
                before += other_blocks if running_stays else 0
            elif worth[class_of(other_stop)][age_of(use - other_end)] > mine:
                before += other_blocks
        hit += min(blocks, max(0, host_blocks - before))
    return hit / sum(w[3] for w in waits)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trace")
    parser.add_argument("--starts", default="poisson:0.02")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=6000, help="restores that count")
    parser.add_argument("--host-blocks", type=int, required=True)
    args = parser.parse_args()
    sessions = read(args.trace)
    waits = waits_of(sessions, starts_of(sessions, args.starts, args.seed), args.requests)
    total = sum(w[3] for w in waits)
    exact = sum(min(w[3], args.host_blocks) for w in waits) / total
    print(f"exact: {exact:.3f}")
    for by_stop in (True, False):
        for stays in (False, True):
            share = hazard_share(waits, args.host_blocks, by_stop, stays)
            print(f"hazards, {'stop reasons' if by_stop else 'none'}, running contexts "
                  f"{'stay' if stays else 'leave'}: {share:.3f}")


if __name__ == "__main__":
    main()
