"""Losses of knowledge distillation: a value per row of float32 tensors, with gradients for the student only.

Values are summed over devices and accumulated batches, so that their mean is that of one large batch. The losses on
pairs of rows are means over the pairs that a row forms with the other rows of its batch on its device; they therefore
depend on the composition of the batch, unlike the other losses.
"""

import torch
from torch import Tensor
from torch.nn import functional


def soft(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Compute the loss of soft targets (Hinton et al. 2015, section 2) of logits (n, classes); (n,).

    T² times the divergence of Kullback and Leibler from the teacher's to the student's softmax(logits / T), eq. 1. It
    has the gradient of the paper's cross-entropy and is zero where both agree. Gradients of that (eq. 2) shrink by
    1/T²: hence the factor, with which a weight means the same at any temperature (eq. 4: in the limit, matched logits).
    """
    logs, wanted = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    return _divergence(logs, wanted) * temperature**2


def soft_binary(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Compute soft targets of a multilabel task: a class is a choice of two, sigmoid(logit / T); mean over classes."""
    masked = torch.zeros_like(student)
    for sign in (1, -1):
        logs, wanted = (functional.logsigmoid(sign * logits / temperature) for logits in (student, teacher))
        masked = masked + wanted.exp() * (wanted - logs)
    return masked.mean(dim=1) * temperature**2


def decoupled(
    student: Tensor, teacher: Tensor, classes: Tensor, *, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Compute decoupled distillation (Zhao et al. 2022, section 3), alpha TCKD + beta NCKD, of logits (n, classes).

    `classes`: the target class of each row, int64 (n,). TCKD: the divergence of (target, not target); NCKD: that of the
    softmax over all classes but the target. Both times T², as the authors' code has it.
    """
    own = classes[:, None]
    others = torch.arange(student.shape[1] - 1, device=student.device).expand(len(student), -1)
    others = others + (others >= own)  # the classes but the row's own
    logs, wanted = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    rest, wanted_rest = (values.gather(1, others) for values in (logs, wanted))
    both, wanted_both = (
        torch.cat([values.gather(1, own), left.logsumexp(dim=1, keepdim=True)], dim=1)
        for values, left in ((logs, rest), (wanted, wanted_rest))
    )
    target = _divergence(both, wanted_both)
    among = _divergence(rest.log_softmax(dim=1), wanted_rest.log_softmax(dim=1))
    return (alpha * target + beta * among) * temperature**2


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the loss of a hint (Romero et al. 2015, section 2.2): half the squared distance of rows; (n,).

    The student's rows are projected. Divided by the number of values in a row, so that a weight has the same meaning
    for layers of any size.
    """
    return 0.5 * (student - teacher).square().flatten(1).mean(dim=1)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute attention transfer (Zagoruyko and Komodakis 2017, section 3.1, p = 2) of maps (n, c, h, w); (n,).

    Half the distance of the attention maps, each the sum of squares over the channels, over its own norm. Channels may
    differ. The published code has the mean of the squared differences instead: its weights are about h w times larger.
    """
    own, wanted = (_unit(maps.square().sum(dim=1).flatten(1)) for maps in (student, teacher))
    apart: Tensor = torch.linalg.vector_norm(own - wanted, dim=1)
    return 0.5 * apart


def distance(student: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """Compare distances (Park et al. 2019, section 3.2.1, RKD-D) of rows (n, d) and (n, e); (n,).

    Huber's loss of the distances between two rows, each over the mean distance in the batch. Of a row the mean over its
    pairs. `known`: the rows that the teacher has, bool (n,); others are in no pair, and a row without pairs has zero.
    """
    pairs = _pairs(known)
    own, wanted = (_distances(rows.flatten(1), pairs) for rows in (student, teacher))
    return _mean(functional.smooth_l1_loss(own, wanted, reduction="none") * pairs, pairs)


def angle(student: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """Compare angles (Park et al. 2019, section 3.2.2, RKD-A) of rows (n, d) and (n, e); (n,).

    Huber's loss of the cosine of the angle at a row between two others. Of a row the mean over all such pairs. Memory
    grows with n² d and n³. `known`: as of `distance`.
    """
    pairs = _pairs(known)
    # [j, i, k]: the angle at j between i and k, all different.
    triples = pairs[:, :, None] & pairs[:, None, :] & pairs[None]
    own, wanted = (_cosines(rows.flatten(1)) for rows in (student, teacher))
    differences = functional.smooth_l1_loss(own, wanted, reduction="none") * triples
    return _mean(differences.flatten(1), triples.flatten(1))


def _divergence(logs: Tensor, wanted: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of log-probabilities (n, classes); (n,)."""
    return functional.kl_div(logs, wanted, log_target=True, reduction="none").sum(dim=1)


def _unit(values: Tensor) -> Tensor:
    """Divide vectors along the last axis by their norms; zero stays zero, with a finite gradient."""
    norms = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values / torch.where(norms > 0, norms, 1.0)


def _pairs(known: Tensor) -> Tensor:
    """Return which rows form a pair, bool (n, n): two different rows that the teacher has."""
    different = ~torch.eye(len(known), dtype=torch.bool, device=known.device)
    return different & known[:, None] & known[None]


def _distances(rows: Tensor, pairs: Tensor) -> Tensor:
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") * pairs
    mean = distances.sum() / pairs.sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _cosines(rows: Tensor) -> Tensor:
    """Compute cosines (n, n, n): [j, i, k] of the angle at row j between i and k."""
    arms = _unit(rows[None] - rows[:, None])
    return arms @ arms.transpose(1, 2)


def _mean(values: Tensor, among: Tensor) -> Tensor:
    """Average along the second axis over the values `among`, (n,); zero where there are none."""
    return values.sum(dim=1) / among.sum(dim=1).clamp(min=1)
