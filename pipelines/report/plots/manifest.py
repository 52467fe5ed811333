"""What the manifest ships, a row per source."""

from __future__ import annotations

from fastmix_data.manifest.manifest import Manifest
from pipelines.report.format import tick, tokens
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import WIDTH, Frame, colour
from pipelines.report.plots.row_marks import ROW, legend, name_room, rest_row, row_name, shown_rows, upright
from pipelines.report.plots.svg import Canvas, Scale

_GAP = 96.0
_EPOCHS_ROOM = 92.0


def manifest_plot(inputs: ReportInputs, manifest: Manifest) -> Canvas:
    """Tokens asked for and given, and how often each source is read against its cap."""
    shown = shown_rows(inputs.sources)
    num_rest = len(inputs.sources) - len(shown)
    canvas = Canvas(WIDTH, 66 + ROW * (len(shown) + bool(num_rest)) + 40, "Tokens and epochs of the manifest")
    names = name_room(shown)
    split = names + (WIDTH - names - _GAP - _EPOCHS_ROOM) * 0.6
    left = Frame(canvas, left=names, right=WIDTH - split, top=52, bottom=40)
    right = Frame(canvas, left=split + _GAP, right=_EPOCHS_ROOM, top=52, bottom=40)
    asked = {source.name: source.weight * manifest.token_budget for source in manifest.sources}
    rows = [inputs.emitted[name] for name in shown]
    x = Scale(0, 1.04 * max(max(asked[source.name], source.num_tokens) for source in rows), left.left, left.right)
    most = max(1.0, *(source.epochs for source in rows))
    # A cap of a hundred epochs that nobody comes near would squeeze all bars to the left edge.
    caps = [source.max_epochs for source in rows if source.max_epochs <= 2 * most]
    epochs = Scale(0, 1.06 * max([most, *caps]), right.left, right.right)
    left.columns(x, x_format=tick, x_label="tokens")
    right.columns(epochs, x_format=lambda value: f"{value:g}", x_label="epochs", count=4)
    _draw_heads(canvas, left, right, has_caps=bool(caps))
    for rank, source in enumerate(rows):
        name, middle = source.name, left.top + ROW * (rank + 0.5)
        with canvas.group(name):
            row_name(left, middle, name)
            given_tip = f"{name}: {source.num_tokens:,} tokens"
            canvas.rect(x(0), middle - 7, x(source.num_tokens) - x(0), 14, f"bar {colour(rank)}", tip=given_tip)
            upright(canvas, x(asked[name]), middle, "mark-asked")
            canvas.text(left.right + 62, middle, tokens(source.num_tokens), "number strong", anchor="end")
            epochs_tip = f"{name}: {source.epochs:.2f} epochs, at most {source.max_epochs:g}"
            css = "bar capped" if source.capped else "bar plain"
            canvas.rect(epochs(0), middle - 7, epochs(source.epochs) - epochs(0), 14, css, tip=epochs_tip)
            if source.max_epochs <= epochs.high:
                upright(canvas, epochs(source.max_epochs), middle, "mark-cap")
            label = f"{source.epochs:.2f}" + (" cap" if source.capped else "")
            canvas.text(right.right + 12, middle, label, "number ink-capped" if source.capped else "number")
    if num_rest:
        rest = [source for source in manifest.sources if source.name not in shown]
        total, num_capped = sum(source.num_tokens for source in rest), sum(source.capped for source in rest)
        rest_row(left, len(shown), f"{num_rest} others: {tokens(total)} tokens together, {num_capped} of them at their cap")
    return canvas


def _draw_heads(canvas: Canvas, left: Frame, right: Frame, *, has_caps: bool) -> None:
    """Say what either half is about, and above that what its marks mean."""
    canvas.text(left.left, 30, "Tokens in the manifest", "strong")
    _draw_meaning(left, "mark-asked", "asked for: weight × budget")
    canvas.text(right.left, 30, "Times each source is read", "strong")
    if has_caps:
        _draw_meaning(right, "mark-cap", "max_epochs")


def _draw_meaning(plot: Frame, css: str, text: str) -> None:
    legend(plot, [(lambda at, middle: upright(plot.canvas, at + 4, middle, css, reach=8), 12, text)], middle=8)
