"""Why a score is what it is: which features moved it, and how far.

Occlusion against a baseline: one feature at a time is set to its median over the training rows, all others stay, and
the model scores again; the feature's effect is the score minus that score, in probability. One run of the session
scores all of these vectors. It costs about as much as a small batch and works for every kind of model.

What it does not promise: effects do not add up to the score, and features that say the same (a count over 1 d and over
7 d) can hide each other, since setting one back leaves the other. It describes the model, not the world.
"""

from collections.abc import Callable, Sequence

import numpy as np

from features.definitions import MODEL_FEATURES, ModelFeature
from predictions.messages import Reason
from predictions.registry.artifact import LoadedModel

MOST_REASONS = 3
SMALLEST_EFFECT = 1e-4
"""In probability; smaller effects are noise of 32-bit arithmetic or of no interest."""


def explain(model: LoadedModel, values: Sequence[float], *, currency: str = "") -> tuple[Reason, ...]:
    """The features that moved the score most, strongest first; none where nothing moved it.

    `currency` names the unit of amounts in the texts.
    """
    return explain_many(model, [values], currencies=[currency])[0]


def explain_many(
    model: LoadedModel, rows: Sequence[Sequence[float]], *, currencies: Sequence[str]
) -> list[tuple[Reason, ...]]:
    """`explain` of each row, in one run of the session for all of them."""
    if not rows:
        return []
    width = len(model.baseline)
    vectors = np.repeat(np.array(rows, np.float64)[:, np.newaxis, :], width + 1, axis=1)
    each = np.arange(width)
    vectors[:, each + 1, each] = model.baseline
    scores = model.score_many(vectors.reshape(-1, width))
    return [
        _strongest(model, values, scores[start : start + width + 1], currency)
        for values, currency, start in zip(rows, currencies, range(0, len(scores), width + 1), strict=True)
    ]


def _strongest(
    model: LoadedModel, values: Sequence[float], scores: Sequence[float], currency: str
) -> tuple[Reason, ...]:
    score, *without = scores
    effects = [(score - other, i) for i, other in enumerate(without)]
    effects.sort(key=lambda effect: (-abs(effect[0]), effect[1]))
    return tuple(
        Reason(
            feature=model.feature_names[i],
            value=values[i],
            effect=effect,
            text=_text(model.feature_names[i], values[i], model.baseline[i], currency),
        )
        for effect, i in effects[:MOST_REASONS]
        if abs(effect) > SMALLEST_EFFECT
    )


def _text(name: str, value: float, usual: float, currency: str) -> str:
    feature = MODEL_FEATURES.get(name)
    if feature is None:  # a model that was trained when the feature still existed
        return f"{name}: {value:g}; usually {usual:g}"
    shown = _FORMATS.get(feature.unit, _plain(feature.unit))
    of_currency = f" {currency}" if feature.unit == "currency" and currency else ""
    if feature.unit == "transactions":
        return f"{shown(value)} {_subject(feature)}; usually {shown(usual)}"
    return f"{_subject(feature)}: {shown(value)}{of_currency}; usually {shown(usual)}{of_currency}"


def _subject(feature: ModelFeature) -> str:
    """The definition's description, made to stand alone."""
    text = feature.description
    if feature.groups == ("merchant_risk",):
        return text.replace("transactions", "transactions of the merchant", 1).replace(
            "fraud", "fraud at the merchant", 1
        )
    if feature.groups == ("customer_activity",):
        return text.replace("their mean amount", "mean amount of the customer", 1)
    return text


def _plain(unit: str) -> Callable[[float], str]:
    return lambda value: f"{value:.2f} {unit}".rstrip()


_FORMATS: dict[str, Callable[[float], str]] = {
    "0 or 1": lambda value: "yes" if value else "no",
    "transactions": lambda value: f"{value:.0f}",
    "currency": lambda value: f"{value:.2f}",
    "share": lambda value: f"{value * 100:.1f} %",
    "d": lambda value: f"{value:.1f} d",
    "ratio": lambda value: f"{value:.2f} times",
    "deviations": lambda value: f"{value:+.2f} deviations",
    "cosine": lambda value: f"{value:.2f} (1 fits best)",
}
