"""An evaluation for its reader: a table, the worst rows, answers side by side; and all of it as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cktrain.evaluation.evaluate import Evaluation, Figure, ModelResult

WORST = 20
SAMPLES = 3
LONGEST = 200
"""Characters of a text that the report shows; JSON has all of them."""

_NAMES = {"general_bits_per_byte": "general, bits per byte", "ended": "answers that end"}


def as_text(found: Evaluation, decode: Callable[[list[int]], str]) -> str:
    """Lines to read; `decode` gives the text of ids."""
    learned = sum(sum(row.learned) for row in found.rows)
    lines = [f"data: {found.data}: {len(found.rows):,} rows, {learned:,} tokens are counted"]
    lines += [f"note: {note}" for note in found.notes]
    lines += ["", *_table(found), "", f"rows with the highest loss per token, of {found.model.path}:"]
    for row, loss in found.worst(WORST):
        ids = list(row.ids)
        begin, end = row.answer or (0, len(ids))
        lines.append(f"  {loss:8.4f}  {row.place}: {_short(decode(ids[begin:end]))}")
    others = found.compared.answers if found.compared is not None else None
    for index, answered in enumerate(found.model.answers[:SAMPLES]):
        lines += ["", f"{answered.place}: {_short(answered.question, end=True)}"]
        lines += [f"  row:   {_short(answered.reference)}", f"  model: {_short(answered.answer)}"]
        if others is not None:
            lines.append(f"  other: {_short(others[index].answer)}")
    return "\n".join(lines)


def as_dict(found: Evaluation) -> dict[str, Any]:
    """For JSON: figures with `value`, `low` and `high`; answers; the worst rows by place."""
    return {
        "data": found.data,
        "rows": len(found.rows),
        "tokens": sum(sum(row.learned) for row in found.rows),
        "notes": found.notes,
        "model": _model_as_dict(found.model),
        "compared": None if found.compared is None else _model_as_dict(found.compared),
        "differences": {name: vars(figure) for name, figure in found.differences.items()},
        "worst": [{"place": row.place, "loss": loss} for row, loss in found.worst(WORST)],
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
        columns += [("other", found.compared.figures), ("difference", found.differences)]
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
        paths.append(f"other: {found.compared.path}")
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
