"""How every chart looks: colours, themes, the order of depth, titles, and saving."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import altair as alt
import pandas as pd

#: What every `chart_…` function returns.
Figure: TypeAlias = (
    alt.Chart | alt.LayerChart | alt.HConcatChart | alt.VConcatChart | alt.FacetChart
)
#: The ground that a chart is drawn for.
Theme: TypeAlias = Literal["light", "dark"]

EMBEDDING_SITE = "blocks.0.hook_resid_pre"
#: Of Vega-Lite, as its converter names it: that of the specifications which Altair makes.
SPEC_VERSION = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
DEPTH_TITLE = "depth (embedding, then block number)"

# Okabe and Ito's palette, told apart under every common colour blindness. Black is kept for the
# one measurement of a chart; yellow comes last, being faint on white.
_VARIETY_HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [4, 1], [1, 3]]
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
# Direction and change are no varieties, though they stand in the same column.
_NOT_VARIETIES = ("direction_cosine",)


@dataclass(frozen=True)
class Palette:
    """The colours of one theme. `ramp` runs from nothing to much, `split` from minus to plus."""

    ground: str
    ink: str
    quiet: str
    grid: str
    null: str
    harmful: str
    harmless: str
    ramp: tuple[str, ...]
    split: tuple[str, str, str]

    def pairs(self, other: Palette) -> list[tuple[str, str]]:
        """Every colour with the one that another theme has in its place."""
        mine, theirs = (
            [p.ground, p.ink, p.quiet, p.grid, p.null, p.harmful, p.harmless, *p.ramp, *p.split]
            for p in (self, other)
        )
        return list(zip(mine, theirs, strict=True))


_PALETTES: dict[str, Palette] = {
    "light": Palette(
        ground="#ffffff",
        ink="#1a1a1a",
        quiet="#5f6368",
        grid="#e6e6e6",
        null="#8c8c8c",
        harmful="#D55E00",
        harmless="#0072B2",
        ramp=("#f4f8fc", "#9ecae1", "#08519c"),
        split=("#2166ac", "#f7f7f7", "#b2182b"),
    ),
    "dark": Palette(
        ground="#0e1117",
        ink="#f2f2f2",
        quiet="#a9afb8",
        grid="#2a303a",
        null="#8c939d",
        harmful="#F0803C",
        harmless="#56B4E9",
        ramp=("#18222e", "#2f6690", "#a6d5f2"),
        split=("#67a9cf", "#20262f", "#ef8a62"),
    ),
}


def palette(theme: Theme) -> Palette:
    return _PALETTES[theme]


@dataclass(frozen=True)
class Hand:
    """Colour, dash and shape of every variety of a run, the same in all of its charts."""

    names: list[str]
    colours: list[str]
    dashes: list[list[int]]
    shapes: list[str]


def variety_colours(frame: pd.DataFrame) -> Hand:
    """One fixed look for each variety of a results frame, by name, whatever the chart shows.

    Beyond seven varieties hues repeat with another dash and shape.
    """
    kept = frame[~frame["measure"].isin(_NOT_VARIETIES)]
    names = sorted({*kept["variety"]} - {""})
    many = range(len(names))
    turns = [(i % 7, (i + i // 7) % 7) for i in many]
    return Hand(
        names,
        [_VARIETY_HUES[hue] for hue, _ in turns],
        [_DASHES[style] for _, style in turns],
        [_SHAPES[style] for _, style in turns],
    )


def depths(frame: pd.DataFrame) -> dict[str, str]:
    """Site to short label, in the order in which the model computes them.

    The embedding is `embed`, a site inside a block is its block number; where a frame has several
    kinds of site, the kind is added: `3 mlp_out`.
    """
    places = frame[frame["site"] != ""][["site", "layer"]].drop_duplicates()
    order = {"pre": 0, "z": 1, "attn_out": 2, "mid": 3, "mlp_out": 4, "post": 5}
    kinds = {s: s.rsplit(".", 1)[-1].removeprefix("hook_") for s in places["site"]}
    inside = {kind for site, kind in kinds.items() if site != EMBEDDING_SITE}

    def rank(place: Any) -> tuple[int, int, str]:
        return int(place.layer), order.get(kinds[place.site].removeprefix("resid_"), 9), place.site

    labels = {}
    for place in sorted(places.itertuples(), key=rank):
        if place.site == EMBEDDING_SITE:
            labels[place.site] = "embed"
        elif len(inside) > 1:
            labels[place.site] = f"{place.layer} {kinds[place.site]}"
        else:
            labels[place.site] = str(place.layer)
    return labels


def chosen_site(rows: pd.DataFrame, site: str, layer: int | None) -> str:
    """`site` where it is named, else the one of `layer`, else the last of the rows."""
    if site:
        return site
    sites = list(depths(rows))
    if layer is None:
        return sites[-1]
    found = rows[(rows["layer"] == layer) & rows["site"].isin(sites)]["site"]
    return str(found.iloc[-1]) if len(found) else f"layer {layer}"


def place(depth: str) -> str:
    """A depth's label in words."""
    return "the embedding" if depth == "embed" else f"block {depth}"


def with_depth(rows: pd.DataFrame, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows with a `depth` column, and all its labels in order, taken from the whole frame."""
    labels = depths(frame)
    return rows.assign(depth=rows["site"].map(labels)), list(labels.values())


def depth_axis(labels: Sequence[str]) -> alt.X:
    return alt.X(
        "depth:O",
        title=DEPTH_TITLE,
        scale=alt.Scale(domain=list(labels)),
        axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False),
    )


def depth_width(labels: Sequence[str]) -> int:
    return max(360, min(720, 40 * len(labels)))


def with_text(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a `said` column: the figure, its interval and its n, as in `0.93 [0.88, 0.97]`."""
    return rows.assign(said=[figure(r) for _, r in rows.iterrows()])


def rounded(value: float, form: str = ".2f") -> str:
    """A figure in words, without a sign before a zero."""
    text = format(value, form)
    return text.lstrip("+-") if float(text) == 0 else text


def figure(row: Any, *, signed: bool = False) -> str:
    """A figure with its interval, where it has one."""
    form = "+.3f" if signed else ".2f"
    text = rounded(row["value"], form)
    if pd.notna(row["low"]) and pd.notna(row["high"]):
        text += f" [{rounded(row['low'], form)}, {rounded(row['high'], form)}]"
    return text


def plain(frame: pd.DataFrame, *measures: str) -> pd.DataFrame:
    """Rows of the measurement itself, without its controls."""
    return frame[frame["measure"].isin(measures) & (frame["control"] == "")]


def control(frame: pd.DataFrame, measure: str, *names: str) -> pd.DataFrame:
    return frame[(frame["measure"] == measure) & frame["control"].isin(names)]


def steps(values: Sequence[float], form: str) -> alt.Legend:
    """A colour legend in squares. A gradient bar is lost where several charts share one page."""
    return alt.Legend(
        type="symbol",
        values=list(values),
        format=form,
        symbolType="square",
        symbolSize=260,
        symbolStrokeWidth=0,
    )


def title(text: str, *below: str, width: int = 560) -> alt.TitleParams:
    """A title that says what is seen, and lines below it that say how to read it."""
    rest, _, last = text.rpartition(" ")
    kept = f"{rest}\u00a0{last}" if rest else text  # no line holds a lone last word
    return alt.TitleParams(
        text=textwrap.wrap(kept, max(30, int(width / 6.9))),
        subtitle=[
            line for part in below for line in textwrap.wrap(part, max(36, int(width / 5.6)))
        ],
    )


def panel_title(text: str) -> alt.TitleParams:
    """The plain heading of one panel among several."""
    return alt.TitleParams(text, fontSize=12, fontWeight="normal", offset=6)


def empty_chart(reason: str, theme: Theme) -> Figure:
    """A chart that says why it shows nothing."""
    note = pd.DataFrame({"note": ["\n".join(textwrap.wrap(reason, 70))]})
    chart = (
        alt.Chart(note, description=reason)
        .mark_text(size=13, color=palette(theme).quiet, lineBreak="\n")
        .encode(text="note:N")
        .properties(width=480, height=120)
    )
    return finish(chart, theme)


def finish(chart: Figure, theme: Theme) -> Figure:
    """The theme's type, colours and grid, laid over a whole chart."""
    p = palette(theme)
    return (
        chart.configure(background=p.ground, font="Helvetica, Arial, sans-serif", padding=12)
        .configure_view(stroke=None)
        .configure_title(
            anchor="start",
            color=p.ink,
            subtitleColor=p.quiet,
            fontSize=14,
            subtitleFontSize=11.5,
            offset=12,
            subtitlePadding=5,
        )
        .configure_axis(
            labelColor=p.ink,
            titleColor=p.ink,
            gridColor=p.grid,
            domainColor=p.quiet,
            tickColor=p.quiet,
            titleFontWeight="normal",
            labelFontSize=11,
            titleFontSize=12,
            labelLimit=260,
        )
        .configure_legend(
            labelColor=p.ink,
            titleColor=p.ink,
            titleFontWeight="normal",
            labelLimit=300,
            symbolStrokeWidth=2,
            symbolOpacity=1,
        )
    )


def save_chart(chart: Figure | dict[str, Any], path: str | Path) -> tuple[Path, Path]:
    """Write `path`.png (twice the size on screen) and `path`.html, which needs no network.

    Args:
        chart: the chart, or its specification, where that is already made.
        path: has no suffix; its folder is made.
    """
    import vl_convert

    spec = chart if isinstance(chart, dict) else chart.to_dict()
    stem = Path(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    picture, page = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.html")
    picture.write_bytes(vl_convert.vegalite_to_png(spec, vl_version=SPEC_VERSION, scale=2))
    page.write_text(
        vl_convert.vegalite_to_html(spec, vl_version=SPEC_VERSION, bundle=True), encoding="utf-8"
    )
    return picture, page
