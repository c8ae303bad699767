"""Pages that need nothing but themselves: templates filled, pictures and styles inside, no request; no script but the
one that sorts the leaderboard, which is sorted without it, too."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from local_eval.report.plots import svg, theme_css

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """The page of a template; every text of the context is escaped, `picture` and `theme` apart."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(theme=Markup(theme_css() + style), **context)


def picture(figure: Any, label: str, caption: str = "") -> dict[str, Any]:
    """A matplotlib figure for the template: inline SVG with `label` for those who do not see it, and a caption."""
    return {"svg": Markup(svg(figure, label)), "caption": caption}


def png_uri(pixels: np.ndarray) -> str:
    """uint8 images (height, width, 3) or (channels, height, width) as a data URI, losslessly: of more than three
    channels the first three, of two their mean."""
    if pixels.shape[-1] != 3:
        colours = pixels[:3] if len(pixels) > 2 else pixels.mean(axis=0, keepdims=True).astype(np.uint8)
        pixels = np.broadcast_to(colours, (3, *pixels.shape[1:])).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
