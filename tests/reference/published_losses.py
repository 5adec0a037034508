"""The published losses, one number after another in Python's float64: slow, and independent of the library's tensors."""

from __future__ import annotations

import math


def softmax(row, temperatures=None):
    """Of a list, each logit over its own temperature."""
    scaled = [z / (temperatures[c] if temperatures else 1.0) for c, z in enumerate(row)]
    top = max(scaled)
    powers = [math.exp(z - top) for z in scaled]
    return [power / sum(powers) for power in powers]


def cross_entropy(row, target):
    """-log softmax(row)[target]."""
    top = max(row)
    return math.log(sum(math.exp(z - top) for z in row)) + top - row[target]


def kl(p, q):
    """KL(p || q)."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def balanced_softmax(logits, targets, counts):
    """Mean over images of CE(z + log n)."""
    shifted = [[z + math.log(n) if n else -math.inf for z, n in zip(row, counts, strict=True)] for row in logits]
    return sum(cross_entropy(row, y) for row, y in zip(shifted, targets, strict=True)) / len(targets)


def margins(counts, max_margin):
    """m_c of LDAM; a class of none has none."""
    raw = [n**-0.25 if n else 0.0 for n in counts]
    return [max_margin * m / max(raw) for m in raw]


def ldam(logits, targets, counts, max_margin, scale, weights=None):
    """Weighted mean over images of the cross entropy after the margin."""
    m = margins(counts, max_margin)
    total = norm = 0.0
    for row, y in zip(logits, targets, strict=True):
        changed = [z - scale * m[y] if c == y else z for c, z in enumerate(row)]
        w = weights[y] if weights else 1.0
        total, norm = total + w * cross_entropy(changed, y), norm + w
    return total / norm


def drw(counts, beta):
    """Weights of the effective number of samples, sum C."""
    raw = [(1 - beta) / (1 - beta**n) if n else 0.0 for n in counts]
    return [w * len(counts) / sum(raw) for w in raw]


def lade(logits, targets, counts, remine_lambda):
    """LADE's regulariser, class by class."""
    classes, images = len(counts), len(targets)
    total = 0.0
    for c, n in enumerate(counts):
        if not n:
            continue
        prior = n / sum(counts)
        own = [row[c] for row, y in zip(logits, targets, strict=True) if y == c]
        in_class = sum(own) / len(own) if own else 0.0
        u = [row[c] - math.log(prior) - math.log(classes) for row in logits]
        top = max(u)
        ratio = math.log(sum(math.exp(v - top) for v in u) / images) + top
        total -= prior * (in_class - ratio - remine_lambda * ratio**2)
    return total


def smoothing(counts, head, tail, shape, power=None):
    """eps of every class."""
    seen = [n for n in counts if n]
    low, high = min(seen), max(seen)
    result = []
    for n in counts:
        rank = (n - low) / (high - low) if high > low else 1.0
        if shape == "concave":
            result.append(tail + (head - tail) * math.sin(rank * math.pi / 2))
        elif shape == "linear":
            result.append(tail + (head - tail) * rank)
        elif shape == "exp":
            result.append(tail + (head - tail) * rank**power)
        else:
            result.append(head + (head - tail) * math.sin(1.5 * math.pi + rank * math.pi / 2))
    return result


def label_aware_smoothing(logits, targets, counts, head, tail, shape, power=None):
    """Cross entropy against labels smoothed by their class."""
    eps = smoothing(counts, head, tail, shape, power)
    total = 0.0
    for row, y in zip(logits, targets, strict=True):
        losses = [cross_entropy(row, c) for c in range(len(row))]
        total += (1 - eps[y]) * losses[y] + eps[y] * sum(losses) / len(losses)
    return total / len(targets)


def ride(experts, targets, counts, diversity, temperature, eta, reweight, max_margin, scale):
    """RIDE's first stage: LDAM and diversity, expert by expert."""
    classes = len(counts)
    mean = [[sum(e[b][c] for e in experts) / len(experts) for c in range(classes)] for b in range(len(targets))]
    weights = drw(counts, 0.9999) if reweight else None
    raw = [classes * n / sum(counts) * eta + 1 - eta if reweight else 1.0 for n in counts]
    temperatures = [temperature * w / max(raw) for w in raw]
    mean_temperature = sum(temperatures) / classes
    total = 0.0
    for logits in experts:
        total += ldam(mean if diversity == 0 else logits, targets, counts, max_margin, scale, weights)
        apart = [kl(softmax(m, temperatures), softmax(z, temperatures)) for m, z in zip(mean, logits, strict=True)]
        total += diversity * mean_temperature**2 * sum(apart) / len(targets)
    return total


def virtual_examples(student, teacher, temperature, power):
    """T^2 KL(q || softmax(s / T)) with q ~ softmax(t / T)^p."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        flat = [p**power for p in softmax([z / temperature for z in t])]
        total += kl([f / sum(flat) for f in flat], softmax([z / temperature for z in s]))
    return temperature**2 * total / len(student)


def routing(asks, experts, targets, positive_weight):
    """RIDE's routing: is one more expert worth asking? Images and decisions one by one."""
    total, decisions = 0.0, len(experts) - 1
    for b, y in enumerate(targets):
        right = []
        for k in range(1, len(experts) + 1):
            together = [sum(e[b][c] for e in experts[:k]) / k for c in range(len(experts[0][b]))]
            right.append(together.index(max(together)) == y)
        for k in range(decisions):
            sure = 1 / (1 + math.exp(-asks[k][b]))
            total -= positive_weight * math.log(sure) if not right[k] and any(right[k + 1 :]) else math.log(1 - sure)
    return total / (decisions * len(targets))


def guided_contrast(queries, keys, targets, queue, queue_targets, temperature):
    """SSD's contrast: an image against the queue, less what is of its own class."""

    def alike(p, q):
        return math.exp(sum(a * b for a, b in zip(p, q, strict=True)) / temperature)

    total = 0.0
    for query, key, y in zip(queries, keys, targets, strict=True):
        others = sum(alike(query, other) for other, label in zip(queue, queue_targets, strict=True) if label != y)
        total -= math.log(alike(query, key) / (alike(query, key) + others))
    return total / len(targets)
