"""Which outputs and targets a known loss takes: those that its torch criterion takes without broadcasting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault


def require_elementwise(name: str, outputs: Any, targets: Any) -> None:
    """Raise ``ConfigError`` unless outputs and targets are tensors of one shape with an axis of examples."""
    _require_tensors(name, outputs, targets)
    f, y = tuple(outputs.shape), tuple(targets.shape)
    if not y and f:
        raise _misfit(
            name, outputs, targets, "the targets have no axis of examples", f"give targets of shape {f}"
        )
    if f != y:
        hint = f"give targets of shape {f}"
        if outputs.numel() == targets.numel():
            hint += f", for example targets.view{f}" if len(f) > 1 else f", or outputs of shape {y}"
        raise _misfit(name, outputs, targets, "torch would broadcast them, which is rarely intended", hint)
    if not f:
        raise _misfit(name, outputs, targets, "there is no axis of examples", "give outputs of shape (n, …)")
    if name == "BCEWithLogitsLoss" and not targets.is_floating_point():
        raise _dtype(name, targets, "floating-point targets", "targets.float()")


def require_logits(name: str, outputs: Any, targets: Any, weights: int, *, last: bool = False) -> None:
    """Raise ``ConfigError`` unless outputs are ``[n, c, *]`` and targets class indices ``[n, *]``.

    ``last``: outputs are ``[n, *, c]``.  Probabilities of classes have the shape of the outputs.  ``weights``
    counts those of classes.
    """
    _require_tensors(name, outputs, targets)
    if outputs.dim() < 2:
        hint = "give outputs of shape (n, classes), with the examples on the first axis"
        raise _misfit(name, outputs, targets, "the outputs have no axis of classes", hint)
    axis = outputs.dim() - 1 if last else 1
    classes, rest = outputs.shape[axis], (*outputs.shape[:axis], *outputs.shape[axis + 1 :])
    soft = targets.is_floating_point()
    wanted = outputs.shape if soft else torch.Size(rest)
    if targets.shape != wanted:
        why = f"classes are axis {axis} of the outputs, so targets must have shape {tuple(wanted)}"
        raise _misfit(name, outputs, targets, why, _remedy(outputs, targets, tuple(wanted)))
    if not soft and targets.dtype not in (torch.int64, torch.uint8):
        raise _dtype(name, targets, "class indices of dtype torch.int64", "targets.long()")
    if weights not in (0, classes):
        what = f"{name}: {weights} class weights for outputs of shape {tuple(outputs.shape)}"
        raise ConfigError(Fault(what, hint=f"give one weight for each of the {classes} classes"))


def require_log_probabilities(name: str, rows: Tensor) -> None:
    """Raise ``ConfigError`` unless every row ``[r, c]`` is normalized; a row that is not finite passes."""
    sums = torch.logsumexp(rows, -1)
    off = torch.nan_to_num(sums, 0.0, 0.0, 0.0).abs()
    if off.numel() and float(off.max()) > torch.finfo(rows.dtype).eps ** 0.5:
        worst = float(sums[off.argmax()])
        raise ConfigError(
            Fault(
                f"{name}: the outputs are not log-probabilities (the logarithm of the sum of probabilities"
                f" of a row is {worst:.3g}, expected 0)",
                hint="end the model with nn.LogSoftmax over the classes, or keep logits and use the criterion"
                " nn.CrossEntropyLoss",
            )
        )


def described(what: Any) -> str:
    """Outputs or targets in words: the shape of a tensor, the type and shapes of a container."""
    if isinstance(what, Tensor):
        return f"a tensor of shape {tuple(what.shape)}"
    if isinstance(what, (tuple, list)):
        return f"a {type(what).__name__} of {len(what)}"
    if hasattr(what, "keys"):
        return f"a {type(what).__name__} with keys {', '.join(map(str, what.keys()))}"
    return f"of type {type(what).__name__}"


def _require_tensors(name: str, outputs: Any, targets: Any) -> None:
    for what, found in (("the model's output", outputs), ("the target", targets)):
        if not isinstance(found, Tensor):
            raise ConfigError(
                Fault(
                    f"{name} takes one tensor of outputs and one of targets; {what} is {described(found)}",
                    hint="write a criterion that selects them, such as "
                    "lambda outputs, targets: criterion(outputs[0], targets)",
                )
            )


def _remedy(outputs: Tensor, targets: Tensor, wanted: tuple[int, ...]) -> str:
    """What makes class-index targets fit."""
    if outputs.dim() > 2 and targets.shape == outputs.shape[:-1]:
        return (
            "the classes seem to come last: let the model return outputs.movedim(-1, 1), or use the criterion"
            ' CrossEntropy(classes="last") of curvlab.objectives.losses'
        )
    if targets.numel() == torch.Size(wanted).numel():
        return f"reshape the targets: targets.view{wanted}"
    return f"give targets of shape {wanted}, or reshape the outputs to (rows, classes)"


def _misfit(name: str, outputs: Tensor, targets: Tensor, why: str, hint: str) -> ConfigError:
    f, y = tuple(outputs.shape), tuple(targets.shape)
    return ConfigError(Fault(f"{name}: outputs of shape {f} and targets of shape {y}: {why}", hint=hint))


def _dtype(name: str, targets: Tensor, wanted: str, remedy: str) -> ConfigError:
    return ConfigError(Fault(f"{name}: targets of dtype {targets.dtype}; expected {wanted}", hint=remedy))
