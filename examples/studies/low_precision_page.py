"""The page of the study of low precision: tables and a picture of the runs that exist."""
# ruff: noqa: E501  # paragraphs of a page are one line each

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from defaults_page import table
from low_precision_runs import held
from training import Ledger

Run = Mapping[str, Any]
Entries = Sequence[Mapping[str, Any]]

TITLES = {"mlp": "MLP 784-512-512-512-10", "convnet": "Convnet", "vit": "Vision transformer"}
PRECISIONS = ("float32", "mixed-bfloat16", "bfloat16")
#: the share by which a loss in bfloat16 may be above that in float32
BOUND = 0.05
#: steps of the long runs, by which families and roles are judged
LONG = 1000
KFAC_BROKEN = "kfac, factors in bfloat16, "

#: events that say nothing of numbers
EXPECTED = ("preconditioner-initialized",)

#: what the numbers of the tables say of the claim
VERDICT = """**KFAC breaks where its factors are stored in bfloat16.** On a layer of condition 1e6 and with λ = 1e-3, an inverse by LU of these factors ascends in 22 to 32 % of the steps; with λ = 1e-4 in half of them. Our inverse refuses 97.5 to 100 % of these factors instead. In training, the factorizations fail too: at the default damping 7 (nearest) and 22 (stochastic) times in 30 refreshes of dense factors, at λ = 1e-3 and below 56 to 120 times. The engine raises the damping until they succeed, so that no run diverged.

**KFAC with float32 factors on rows in bfloat16 holds.** This is the default of `bfloat16`. No step ascends, the cosine to the direction in float64 is 1.0000, and no factorization failed in training. So the claim that KFAC fails in half precision is true of its stored factors alone.

**SINGD, INGD and IKFAC hold in bfloat16 throughout, at 50.0 % of the state bytes.** No step of IKFAC ascends, and no loss, parameter or state of any run was non-finite. K is a root of the inverse, so it holds the root of the condition number. This has a limit: at λ = 1e-4 the cosine of IKFAC falls from 0.93 to 0.81, and the loss of dense SINGD after 300 steps is 12 % above that in float32. That of KFAC with float32 factors is 4 % above there, and 14 % at λ = 1e-5. At the default λ = 0.03 the loss of SINGD is between 2.5 % below and 4.5 % above that in float32, after 1,000 steps of the larger MLP, in all eleven structures (one to three seeds each).

**What is saved is a matter of the structure.** On the MLP, SINGD with blocks holds 2,334 kB, KFAC with float32 factors 3,842 kB, AdamW 3,729 kB. Dense SINGD holds 10,642 kB. In bfloat16 and at equal steps, the loss of SINGD with blocks is 25 % below that of AdamW on the MLP and 35 % below on the convnet; with diagonal factors it is the same on the MLP. Rates were not tuned."""


class Found:
    """Runs and laws of a ledger, without the digest of their settings: the last of each counts."""

    def __init__(self, entries: Entries) -> None:
        self.laws = {
            (e["key"]["law"], *e["key"]["settings"]): e["found"] for e in entries if "law" in e["key"]
        }
        self.runs = [e for e in entries if "law" not in e["key"]]

    def seeds(self, name: str, precision: Mapping[str, Any], net: str, steps: int) -> dict[int, Run]:
        """Runs by seed."""
        return {
            e["key"]["seed"]: e["found"]
            for e in self.runs
            if (e["key"]["name"], e["key"]["precision"], e["key"]["net"], e["key"]["steps"])
            == (name, precision, net, steps)
        }

    def names(self, net: str, steps: int) -> list[str]:
        """Who ran, in the order of the first runs."""
        on = [e["key"] for e in self.runs if (e["key"]["net"], e["key"]["steps"]) == (net, steps)]
        return list(dict.fromkeys(key["name"] for key in on))

    def steps(self, net: str) -> list[int]:
        """How long runs on a network are."""
        return sorted({e["key"]["steps"] for e in self.runs if e["key"]["net"] == net})


def table_of(precision: str, name: str = "", **more: str) -> dict[str, Any]:
    """A precision as the key of a run has it."""
    broken = (
        {"factors": "bfloat16", "averages": name.removeprefix(KFAC_BROKEN).split(",")[0]}
        if name.startswith(KFAC_BROKEN)
        else {}
    )
    return {"use": precision, **more, **broken}


# numbers


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and the range if there are several."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def ratios(runs: Mapping[int, Run], base: Mapping[int, Run]) -> list[float]:
    """Smoothed losses at the end over those of the same seeds in float32."""
    return [
        runs[s]["end"] / base[s]["end"] for s in sorted(runs.keys() & base.keys()) if not runs[s]["failure"]
    ]


def excess(values: Sequence[float]) -> str:
    """The mean of ratios as a percentage above 1, and the range."""
    if not values:
        return ""
    found = [100 * (v - 1) for v in values]
    mean = f"{statistics.fmean(found):+.1f} %"
    return mean if len(found) == 1 else f"{mean} ({min(found):+.1f} – {max(found):+.1f})"


def lapsed(runs: Iterable[Run]) -> int:
    """Numbers that were not finite, and runs that ended early."""
    return sum(r["not_finite"] + bool(r["failure"]) for r in runs)


def reported(runs: Iterable[Run], *, short: bool = False) -> str:
    """Events of all runs, by name, and why runs ended; in ``short`` only how many of either there are."""
    kinds: dict[str, int] = {}
    runs = list(runs)
    for r in runs:
        for kind, count in r["events"].items():
            if kind not in EXPECTED:
                kinds[kind] = kinds.get(kind, 0) + count
    if short:
        return str(sum(kinds.values()) + sum(bool(r["failure"]) for r in runs) or "")
    ends = sorted({r["failure"] for r in runs if r["failure"]})
    return "; ".join([*(f"{count} × {kind}" for kind, count in kinds.items()), *ends])


def kilobytes(runs: Mapping[int, Run]) -> str:
    """State bytes, those of any seed."""
    return f"{next(iter(runs.values()))['bytes'] / 1000:,.0f}" if runs else ""


# sections


def laws(found: Found) -> str:
    """The five laws, a table or a sentence each."""
    return "\n\n".join(
        text for part in (_factors, _averages, _products, _directions, _range) if (text := part(found.laws))
    )


def _rows(laws: Mapping[Any, Run], law: str) -> dict[str, dict[float, Run]]:
    rows: dict[str, dict[float, Run]] = {}
    for key, run in laws.items():
        if key[0] == law:
            rows.setdefault(key[1], {})[key[2]] = run
    return rows


def _grid(
    rows: Mapping[str, Mapping[float, Run]],
    head: str,
    show: Callable[[Run], Sequence[str]],
    heads: Sequence[str],
) -> str:
    settings = list(dict.fromkeys(s for row in rows.values() for s in row))
    titles = ["", *(f"{h}, {head} {s:g}" for s in settings for h in heads)]
    cells = [[name, *(c for s in settings for c in show(row[s]))] for name, row in rows.items()]
    return table(titles, cells)


def _factors(laws: Mapping[Any, Run]) -> str:
    rows = _rows(laws, "factor")
    if not rows:
        return ""
    body = _grid(
        rows,
        "condition",
        lambda r: (str(r["negative"]), f"{r['shift']:.1g}"),
        ("negative eigenvalues of 64", "least λ/λ_max"),
    )
    return f"""### 1. A factor that is kept in bfloat16 is not positive definite

`LayerCovariance` averages 40 batches of 256 rows with this condition number. "Least λ" is the smallest of the powers of ten, in quarters, with which a Cholesky factor in float32 or float64 exists.

{body}"""


def _averages(laws: Mapping[Any, Run]) -> str:
    rows = _rows(laws, "average")
    if not rows:
        return ""
    body = _grid(rows, "decay", lambda r: (f"{r['end']:.3f}",), ("end",))
    return f"""### 2. An average in bfloat16 stops moving

`Ema` stands at 1 and sees 2 for ten times its memory. Its state is in bfloat16; the mean of 4,096 entries.

{body}"""


def _products(laws: Mapping[Any, Run]) -> str:
    run = laws.get(("products",))
    if run is None:
        return ""
    return f"""### 3. Products in bfloat16 have the wrong sign

A positive definite A of condition 1e6 and its eigenvectors Q: {run["products"]} of {run["of"]} entries of diag(QᵀAQ) are negative when the products are in bfloat16. EKFAC takes means of squares in the basis instead. With factors in bfloat16, {run["moments"]} of them are not positive."""


def _directions(laws: Mapping[Any, Run]) -> str:
    rows = _rows(laws, "direction")
    if not rows:
        return ""

    def show(run: Run) -> Sequence[str]:
        cosine = "" if run["failed"] > 0.9 else f"{run['cosine']:.4f}"
        return f"{100 * run['ascending']:.1f} %", f"{100 * run['failed']:.1f} %", cosine

    body = _grid(rows, "λ", show, ("ascends", "no factorization", "cosine"))
    return f"""### 4. Directions on an ill-conditioned layer

400 batches of 256 rows, inputs and output gradients of condition 1e6, λ added to each factor. The direction of a random gradient ascends if its inner product with the gradient is not positive. The cosine is to the direction of KFAC in float64.

{body}

"Our inverse" is the part `cholesky`: it refuses a factor that is not positive definite, so that a training step is repeated with more damping. An inverse by LU exists and is wrong."""


def _range(laws: Mapping[Any, Run]) -> str:
    run = laws.get(("range",))
    if run is None:
        return ""
    shown = " and ".join(f"{value:.3f} for rows of size {float(size):g}" for size, value in run.items())
    return f"""### 5. The range of float16

In float16 (1e-4)² is 0, and (0.01 · 2¹⁶)² is infinite. KFAC's A of float16 rows is summed in float32. Its diagonal over the true one is {shown}."""


def methods(found: Found, net: str, steps: int) -> str:
    """The table of one network."""
    rows = []
    for name in found.names(net, steps):
        base = found.seeds(name, table_of("float32"), net, steps)
        if name.startswith(KFAC_BROKEN):
            base = found.seeds("kfac", table_of("float32"), net, steps)
        mine = {p: found.seeds(name, table_of(p, name), net, steps) for p in PRECISIONS}
        bf16 = mine["bfloat16"]
        cells = [f"`{name}`" if "," not in name else name]
        cells.append(spread([r["end"] for r in mine["float32"].values()]))
        for p in PRECISIONS[1:]:
            cells += [
                spread([r["end"] for r in mine[p].values() if not r["failure"]]),
                excess(ratios(mine[p], base)),
            ]
        cells += [kilobytes(mine["float32"]), kilobytes(bf16)]
        cells += [str(sum(lapsed(runs.values()) for runs in mine.values())), reported(bf16.values())]
        cells.append(str(max(map(len, mine.values()))))
        rows.append(cells)
    head = ["", "float32", "mixed", "to float32", "bfloat16", "to float32"]
    head += ["state, float32 (kB)", "state, bfloat16 (kB)", "not finite", "events in bfloat16", "seeds"]
    return table(head, rows)


def damping(found: Found) -> str:
    """Losses with dense factors on the small network, by damping."""
    names = [n for steps in found.steps("narrow") for n in found.names("narrow", steps) if "λ = " in n]
    if not names:
        return ""
    values = list(dict.fromkeys(n.rpartition(", λ = ")[2] for n in names))
    rows = []
    for name in dict.fromkeys(n.rpartition(", λ = ")[0] for n in names):
        for precision in ("float32", "bfloat16"):
            cells = []
            for value in values:
                full = f"{name}, λ = {value}"
                runs = [
                    r
                    for steps in found.steps("narrow")
                    for r in found.seeds(full, table_of(precision, name), "narrow", steps).values()
                ]
                finished = [r["end"] for r in runs if not r["failure"]]
                cells += [spread(finished) or ("ended" if runs else ""), reported(runs, short=True)]
            if any(cells):
                rows.append([name, precision, *cells])
    return table(["", "", *(h for v in values for h in (f"λ = {v}", "events"))], rows)


def families(found: Found) -> str:
    """SINGD by structure: float32 against bfloat16."""
    rows = []
    for name in found.names("mlp", LONG):
        base, bf16 = (found.seeds(name, table_of(p), "mlp", LONG) for p in ("float32", "bfloat16"))
        if not base or not bf16:
            continue
        both = sorted(base.keys() & bf16.keys())
        size = next(iter(bf16.values()))["bytes"] / next(iter(base.values()))["bytes"]
        rows.append([
            name.removeprefix("singd, "),
            spread([base[s]["end"] for s in both], 4),
            spread([bf16[s]["end"] for s in both], 4),
            excess(ratios(bf16, base)),
            f"{100 * size:.1f} %",
            str(lapsed(bf16.values())),
            str(len(both)),
        ])  # fmt: skip
    return table(
        ["structure", "float32", "bfloat16", "difference", "state bytes", "not finite", "seeds"], rows
    )


ROLES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {}),
    "parameters rounded to nearest": ("bfloat16", {"parameter_write": "nearest"}),
    "parameters from a float32 copy": ("bfloat16", {"parameter_write": "master"}),
    "moments in float32": ("bfloat16", {"moments": "float32"}),
    "K and C in float32": ("bfloat16", {"factors": "float32"}),
}


def roles(found: Found, net: str) -> str:
    """SINGD in bfloat16 but for one role, by structure; only structures with such runs."""
    shown = [
        name
        for name in found.names(net, LONG)
        if any(found.seeds(name, table_of(use, **more), net, LONG) for use, more in list(ROLES.values())[2:])
    ]
    rows = []
    for title, (use, more) in ROLES.items():
        cells = [title]
        for name in shown:
            base = found.seeds(name, table_of("float32"), net, LONG)
            runs = found.seeds(name, table_of(use, **more), net, LONG)
            ours = "" if use == "float32" else excess(ratios(runs, base))
            cells += [spread([r["end"] for r in runs.values()], 4), ours, str(len(runs))]
        rows.append(cells)
    return table(["", *(h for name in shown for h in (name, "", "seeds"))], rows) if shown else ""


def stability(found: Found) -> str:
    """The stability study's table in bfloat16."""
    tables = []
    for steps in found.steps("narrow"):
        rows = []
        for name in (n for n in found.names("narrow", steps) if "T = " in n):
            runs = list(found.seeds(name, table_of("bfloat16"), "narrow", steps).values())
            good = [r for r in runs if not r["failure"]]
            worst = max((r["worst"] / r["start"] for r in good), default=math.nan)
            kept = f"{sum(map(held, runs))} of {len(runs)}"
            rows.append([name, spread([r["end"] for r in good]), f"{worst:.3f}", kept, reported(runs)])
        head = ["", "smoothed loss at the end", "worst ÷ start", "runs that held", "failures and events"]
        if rows:
            tables.append(f"{steps:,} steps:\n\n{table(head, rows)}")
    return "\n\n".join(tables)


def picture(found: Found, path: Path) -> None:
    """Losses in bfloat16 over those in float32: methods by network, and SINGD's structures."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "curvlab", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    colors = dict(zip(TITLES, ("tab:blue", "tab:orange", "tab:green"), strict=True))
    marks = {"mixed-bfloat16": "o", "bfloat16": "s"}
    names = list(dict.fromkeys(n for net in TITLES for k in short(found, net) for n in found.names(net, k)))
    for net, color in colors.items():
        for steps in short(found, net):
            for precision, mark in marks.items():
                points = [
                    (r, names.index(name))
                    for name in found.names(net, steps)
                    for r in ratios(
                        found.seeds(name, table_of(precision, name), net, steps),
                        found.seeds(
                            "kfac" if name.startswith(KFAC_BROKEN) else name, table_of("float32"), net, steps
                        ),
                    )
                ]
                filled = color if precision == "bfloat16" else "none"
                panels[0].scatter(
                    [r for r, _ in points], [k for _, k in points], marker=mark, s=22, edgecolors=color,
                    facecolors=filled, label=f"{net}, {precision}", linewidths=1,
                )  # fmt: skip
    structures = [n for n in found.names("mlp", LONG) if found.seeds(n, table_of("bfloat16"), "mlp", LONG)]
    for k, name in enumerate(structures):
        base, bf16 = (found.seeds(name, table_of(p), "mlp", LONG) for p in ("float32", "bfloat16"))
        found_ratios = ratios(bf16, base)
        panels[1].scatter(found_ratios, [k] * len(found_ratios), marker="s", s=22, color="tab:blue")
    for panel, labels, title in (
        (panels[0], names, "methods, equal steps"),
        (
            panels[1],
            [n.removeprefix("singd, ") for n in structures],
            f"SINGD, MLP, {LONG:,} steps",
        ),
    ):
        panel.set_yticks(range(len(labels)), labels)
        panel.invert_yaxis()
        panel.axvline(1.0, color="black", lw=0.8)
        panel.axvspan(1 - BOUND, 1 + BOUND, color="tab:gray", alpha=0.15, lw=0)
        panel.set(xlabel="loss over that in float32", title=title)
        panel.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def short(found: Found, net: str) -> list[int]:
    """Lengths of the runs of all methods on a network."""
    return [steps for steps in found.steps(net) if steps != LONG]


def steps_of_damping(found: Found) -> str:
    """How long they are."""
    lengths = [k for k in found.steps("narrow") if any("λ = " in n for n in found.names("narrow", k))]
    return ", ".join(map(str, lengths))


def written(ledger: Ledger) -> str:
    """The whole page."""
    found = Found(ledger.entries())
    nets = "\n\n".join(
        f"### {title}, {steps} steps\n\n{methods(found, net, steps)}"
        for net, title in TITLES.items()
        for steps in short(found, net)
    )
    return f"""# Low precision

This page shows which curvature methods train in bfloat16, what breaks, and what is saved. It tests the claim of arXiv 2312.05705 that SINGD is robust in half precision where KFAC is not.

![Loss in bfloat16 over the loss in float32, by method and by structure of SINGD](low-precision.svg)

## What holds

{VERDICT}

## Five laws

Experiments on one layer with 64 inputs and 32 outputs, by the parts of the methods. They are tests of the precision plugin.

{laws(found)}

## Methods in three precisions

Fashion-MNIST, batch 128, defaults of every method, one CPU thread. Losses are the exponential average of the batch losses, decay 0.98, at the end: mean over seeds (smallest – largest). "To float32" compares runs of equal seeds. "Mixed" is autocast in bfloat16 with float32 states. "Not finite" counts losses, and parameters and states at the end, over all precisions. "Events" are what the optimizer reports: factorizations that failed, and steps repeated with more damping.

{nets}

On a CPU, gradients of `LayerNorm`'s weight and bias in bfloat16 are coarse: for 6,400 random rows, torch's are 8 % of their norm away from sums in float32. The check that rows explain a gradient allows for it in norms.

## KFAC with factors in bfloat16, by damping

MLP 784-32-32-10, dense factors, {steps_of_damping(found)} steps: smoothed loss, and the number of events. λ is in units of the mean curvature, with IKFAC of each factor's.

{damping(found)}

## SINGD in bfloat16, every structure

The MLP after {LONG:,} steps: smoothed loss, and bytes of the state over those in float32.

{families(found)}

Which role costs what. Each row differs from "bfloat16" in one setting. The same MLP:

{roles(found, "mlp")}

MLP 784-32-32-10, {LONG:,} steps:

{roles(found, "narrow")}

Parameters that are rounded to nearest cost 3 to 5 % of the loss. Rounded stochastically, the default, they cost about 1 %, and a float32 copy is no better.

## Stability

The protocol of [the study of stability](singd-stability.md) in bfloat16 on the MLP 784-32-32-10. A run holds if everything is finite and the smoothed loss is never above its start. T is the number of steps between updates of the factors.

{stability(found)}

## How to run it

```
OMP_NUM_THREADS=1 python examples/studies/low_precision.py laws
OMP_NUM_THREADS=1 python examples/studies/low_precision.py methods
OMP_NUM_THREADS=1 python examples/studies/low_precision.py damping --seeds 0
OMP_NUM_THREADS=1 python examples/studies/low_precision.py families
OMP_NUM_THREADS=1 python examples/studies/low_precision.py roles
OMP_NUM_THREADS=1 python examples/studies/low_precision.py stability --seeds 0 1
python examples/studies/low_precision.py --draw
```

Every run is a line of `low-precision/runs.jsonl`. Runs that exist are not repeated, so a command can be stopped and given again. `--draw` writes this page from the file.

## Limits

The CPU has no products of bfloat16. They are computed in float32 and rounded once, as tensor cores do, so that the page says nothing of speed. Networks are small and runs are short: most of them have one seed, of which a difference of two per cent says nothing. The runs of stability are shorter than in float32. Rates are the defaults for float32.
"""
