"""Which modules can be computed again, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from curvlab.errors import ConfigError, Fault
from curvlab.model.rerun.attention import attention
from curvlab.model.rerun.cells import gru_cell, lstm_cell, rnn_cell
from curvlab.model.rerun.recurrent import recurrent

#: by the class whose ``forward`` each computes again, with the arguments of that ``forward``
RERUNS: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.LSTM: recurrent,
    nn.GRU: recurrent,
    nn.RNN: recurrent,
    nn.LSTMCell: lstm_cell,
    nn.GRUCell: gru_cell,
    nn.RNNCell: rnn_cell,
    nn.MultiheadAttention: attention,
}


def refusal(module: nn.Module) -> str | None:
    """Why a module cannot be computed again, or ``None``."""
    for kind in RERUNS:
        if isinstance(module, kind):
            if type(module).forward is kind.forward:
                return None
            return f"{type(module).__name__} overrides {kind.__name__}.forward"
    return f"{type(module).__name__} cannot be computed again from linear maps"


def rerun(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The outputs of ``module(*args, **kwargs)``, equal to rounding, from ``F.linear`` on its parameters.

    Structure, shapes and layout are those of the module's own outputs.  Dropout draws from torch's generator
    as the module does on a CPU.  Raises ``ConfigError`` for a module that ``refusal`` refuses.
    """
    why = refusal(module)
    if why is not None:
        raise ConfigError(Fault(why, hint=f"supported: {', '.join(sorted(k.__name__ for k in RERUNS))}"))
    return next(again for kind, again in RERUNS.items() if isinstance(module, kind))(module, *args, **kwargs)


def draws(module: nn.Module) -> bool:
    """Whether a call of the module, as it stands, draws random numbers."""
    return module.training and float(getattr(module, "dropout", 0.0)) > 0.0
