"""Request streams for eviction tests: lists of integer keys, the same on every run for the same arguments."""

import random
from bisect import bisect_left
from itertools import accumulate, count


def zipf(requests: int, keys: int, exponent: float, seed: int) -> list[int]:
    """Popularity of rank r is r ** -exponent, independent requests."""
    rng = random.Random(seed)
    bounds = list(accumulate(rank**-exponent for rank in range(1, keys + 1)))
    return [bisect_left(bounds, rng.random() * bounds[-1]) for _ in range(requests)]


def scans(
    requests: int,
    capacity: int,
    seed: int,
    *,
    share: float = 0.5,
    exponent: float = 1.0,
    keys_per_capacity: int = 10,
    length: float = 2,
) -> list[int]:
    """Zipf over `keys_per_capacity` capacities; now and then a sequential scan of `length` capacities of fresh keys."""
    rng = random.Random(seed)
    each = int(length * capacity)
    popular = iter(zipf(requests, keys_per_capacity * capacity, exponent, seed))
    fresh = count(keys_per_capacity * capacity)
    trace: list[int] = []
    while len(trace) < requests:
        pause = int(each * (1 - share) / share * rng.uniform(0.5, 1.5))
        trace += [next(popular) for _ in range(min(pause, requests - len(trace)))]
        trace += [next(fresh) for _ in range(each)]
    return trace[:requests]


def mixed_scans(
    requests: int, capacity: int, seed: int, *, share: float = 0.5, exponent: float = 1.0, keys_per_capacity: int = 10
) -> list[int]:
    """As `scans`, but each request is with probability `share` the next of one endless scan."""
    rng = random.Random(seed)
    popular = iter(zipf(requests, keys_per_capacity * capacity, exponent, seed))
    fresh = count(keys_per_capacity * capacity)
    return [next(fresh) if rng.random() < share else next(popular) for _ in range(requests)]


def loop(requests: int, capacity: int, factor: float) -> list[int]:
    """The same keys in the same order again and again, `factor` capacities of them."""
    keys = int(capacity * factor)
    return [number % keys for number in range(requests)]


def stack_distance(requests: int, capacity: int, seed: int, *, fresh: float = 0.1, spread: float = 1.5) -> list[int]:
    """With probability `fresh` a new key, else one from the depth of LRU's stack: log-normal, median capacity / 5."""
    rng = random.Random(seed)
    names = count()
    stack: list[int] = []  # most recent last
    trace = []
    for _ in range(requests):
        depth = int(rng.lognormvariate(0, spread) * capacity / 5)
        key = next(names) if depth >= len(stack) or rng.random() < fresh else stack.pop(-1 - depth)
        stack.append(key)
        if len(stack) > 4 * capacity:
            del stack[0]
        trace.append(key)
    return trace


def sliding(requests: int, capacity: int, seed: int, *, live: float = 0.8, step: int = 8) -> list[int]:
    """Uniform over a working set of `live` capacities; every `step` requests its oldest key gives way to a new one."""
    rng = random.Random(seed)
    size = max(1, int(capacity * live))
    return [number // step + rng.randrange(size) for number in range(requests)]


def bursts(requests: int, capacity: int, seed: int, *, asks: int = 4, live: float = 0.6) -> list[int]:
    """Each new key is asked `asks` times at random moments within a live set of `live` capacities, then never again."""
    rng = random.Random(seed)
    names = count()
    size = max(1, int(capacity * live))
    left = [[next(names), rng.randint(1, asks)] for _ in range(size)]
    trace = []
    for _ in range(requests):
        at = rng.randrange(size)
        trace.append(left[at][0])
        left[at][1] -= 1
        if left[at][1] == 0:
            left[at] = [next(names), asks]
    return trace


def waves(requests: int, capacity: int, *, asks: int, live: float) -> list[int]:
    """As `bursts`, in waves: a live set is walked `asks` times, then it is replaced by a new one."""
    size = max(1, int(capacity * live))
    return [number // (size * asks) * size + number % size for number in range(requests)]


def phases(requests: int, capacity: int, seed: int, *, phases: int = 4, exponent: float = 0.9) -> list[int]:
    """Zipf over two capacities; who is popular changes altogether with every phase."""
    keys = 2 * capacity
    popular = zipf(requests, keys, exponent, seed)
    each = -(-requests // phases)
    return [number // each * keys + key for number, key in enumerate(popular)]


def working_set_phases(requests: int, capacity: int, seed: int, *, phases: int = 8, live: float = 0.9) -> list[int]:
    """Uniform over a working set that fits; a new one with every phase."""
    rng = random.Random(seed)
    size = max(1, int(capacity * live))
    each = -(-requests // phases)
    return [number // each * size + rng.randrange(size) for number in range(requests)]
