"""Contrast with a queue of earlier images, guided by labels: SSD."""

from __future__ import annotations

import torch
from torch import Tensor

from mllt.errors import ArgumentError, check_number
from mllt.longtail import as_tensor


def guided_contrastive_loss(
    query: Tensor,
    key: Tensor,
    target: Tensor,
    queue: Tensor,
    queue_target: Tensor,
    temperature: float = 0.2,
) -> Tensor:
    r"""InfoNCE in which what the queue holds of an image's own class does not count against it.

    For image i with s_ij = <q_i, k_j> / T, k_i the key of its other view:

        -log( exp(s_ii) / (exp(s_ii) + sum_j [y_j != y_i] exp(s_ij)) ), j over the queue

    (Li et al., "Self Supervision to Distillation for Long-Tailed Visual Recognition" (SSD), ICCV 2021, section 3.2; the queue
    of He et al., "Momentum Contrast", CVPR 2020.)

    Args:
        query: `(B, D)`, of unit length; floating.
        key: `(B, D)`, of the same images in another view, of unit length; a constant: no gradient flows into it.
        target: `(B,)` whole numbers, the classes of the images.
        queue: `(K, D)`, keys of earlier images, of unit length; constants.
        queue_target: `(K,)`, their classes.
        temperature: T > 0.

    Returns:
        Scalar, a mean over the batch; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes or types do not fit, or the temperature is not positive.

    >>> q = torch.tensor([[1.0, 0.0]])
    >>> queue, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 3])
    >>> loss = guided_contrastive_loss(q, q, torch.tensor([7]), queue, labels, temperature=1.0)
    >>> round(float(loss), 4)  # log(1 + exp(0 - 1)): the one of its own class is left out
    0.3133
    """
    check_number("temperature", temperature, above=0)
    query, key, queue = as_tensor("query", query), as_tensor("key", key), as_tensor("queue", queue)
    target, queue_target = as_tensor("target", target), as_tensor("queue_target", queue_target)
    shapes = [tuple(tensor.shape) for tensor in (query, key, target, queue, queue_target)]
    batch, size = shapes[0] if query.ndim == 2 else (None, None)
    fits = query.ndim == 2 and shapes[1:3] == [(batch, size), (batch,)] and shapes[3:] == [(len(queue), size), (len(queue),)]
    if not fits or not all(tensor.is_floating_point() for tensor in (query, key, queue)):
        raise ArgumentError(
            "Expected `query` and `key` (batch, size), `target` (batch,), `queue` (length, size) and `queue_target` (length,), "
            f"the first two and the queue floating, but got shapes {shapes}."
        )
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key, queue = query.to(wide), key.detach().to(wide), queue.detach().to(wide)
    query = query / temperature
    own = (query * key).sum(dim=1)
    # (B, K) numbers, which may be many: once, in place
    others = (query @ queue.T).masked_fill_(target[:, None] == queue_target[None], -torch.inf)
    return (torch.logaddexp(own, others.logsumexp(dim=1)) - own).sum() / max(len(target), 1)
