"""An evaluation for its reader: a table, the worst rows, answers side by side; and all of it as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cktrain.evaluation.evaluate import Evaluation, Figure, ModelResult

LONGEST = 200
"""Characters of a text that the report shows; JSON has all of them."""

_NAMES = {"general_bits_per_byte": "general, bits per byte", "ended": "answers that end"}


def as_text(found: Evaluation, decode: Callable[[list[int]], str], worst: int = 20, samples: int = 3) -> str:
    """Lines to read, with so many of the worst rows and of the answers; `decode` gives the text of ids."""
    learned = sum(sum(row.learned) for row in found.rows)
    lines = [f"data: {found.data}: {len(found.rows):,} rows, {learned:,} tokens are counted"]
    lines += [f"note: {note}" for note in found.notes]
    lines += ["", *_table(found)]
    if worst:
        lines += ["", f"rows with the highest loss per token, of {found.model.path}:"]
    for row, loss in found.worst(worst):
        ids = list(row.ids)
        begin, end = row.answer or (0, len(ids))
        lines.append(f"  {loss:8.4f}  {row.place}: {_short(decode(ids[begin:end]))}")
    name, others = found.compared_name, found.compared.answers if found.compared is not None else None
    for index, answered in enumerate(found.model.answers[:samples]):
        lines += ["", f"{answered.place}: {_short(answered.question, end=True)}"]
        lines.append(f"  {'row:':<6} {_short(answered.reference)}")
        if others is not None:
            lines.append(f"  {name + ':':<6} {_short(others[index].answer)}")
        lines.append(f"  {'model:':<6} {_short(answered.answer)}")
    return "\n".join(lines)


def as_dict(found: Evaluation, worst: int = 20) -> dict[str, Any]:
    """For JSON: figures with `value`, `low` and `high`; answers; the worst rows by place."""
    return {
        "data": found.data,
        "rows": len(found.rows),
        "tokens": sum(sum(row.learned) for row in found.rows),
        "notes": found.notes,
        "model": _model_as_dict(found.model),
        "compared": None if found.compared is None else _model_as_dict(found.compared),
        "differences": {name: vars(figure) for name, figure in found.differences.items()},
        "worst": [{"place": row.place, "loss": loss} for row, loss in found.worst(worst)],
    }


def _model_as_dict(result: ModelResult) -> dict[str, Any]:
    return {
        "path": result.path,
        **{name: vars(figure) for name, figure in result.figures.items()},
        "answers": [vars(answered) for answered in result.answers],
    }


def _table(found: Evaluation) -> list[str]:
    columns = [("model", found.model.figures)]
    if found.compared is not None:
        columns = [(found.compared_name, found.compared.figures), *columns, ("difference", found.differences)]
    head = ["", *(name for name, _ in columns)]
    body = [
        [_NAMES.get(name, name), *(_in_words(figures[name]) for _, figures in columns)]
        for name in found.model.figures
    ]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *body]
    ]
    paths = [f"model: {found.model.path}"]
    if found.compared is not None:
        paths.insert(0, f"{found.compared_name}: {found.compared.path}")
    return [*paths, "", *lines, "", "in brackets: 95 % of 2,000 draws of rows (bootstrap)"]


def _in_words(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def _short(text: str, end: bool = False) -> str:
    """On one line; the beginning, or the end."""
    line = " ".join(text.split())
    if len(line) <= LONGEST:
        return line
    return "… " + line[-LONGEST:] if end else line[:LONGEST] + " …"
