"""Row layouts that others publish and read: WRPO, TRL, SimPO, FuseChat-3.0, LLaMA-Factory, distilabel, UltraFeedback.

Both directions: our rows become files of a layout, files become prompts, answers and rows of ours. Every layout is data
(`form.py`) and is listed here; `example.py` stands between layouts and row types. Nothing here imports Ray or a model
library.
"""

from collections.abc import Collection

from fusion.errors import InputError
from fusion.layouts.binarized import BINARIZED
from fusion.layouts.distilabel import DISTILABEL
from fusion.layouts.example import Kind
from fusion.layouts.form import Layout
from fusion.layouts.fusechat import FUSECHAT3
from fusion.layouts.llama_factory import ALPACA, SHAREGPT
from fusion.layouts.simpo import SIMPO
from fusion.layouts.trl import TRL, UNPAIRED
from fusion.layouts.wrpo import WRPO

LAYOUTS = {
    layout.name: layout for layout in (WRPO, TRL, UNPAIRED, SIMPO, BINARIZED, FUSECHAT3, SHAREGPT, ALPACA, DISTILABEL)
}
"""All layouts by name."""


def layout_named(name: str) -> Layout:
    """Return a layout. Raises InputError for a name that is none."""
    if name not in LAYOUTS:
        raise InputError(f"--layout {name}: there is no such layout; there are: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def layouts_for(kind: Kind) -> list[str]:
    """Return the names of the layouts that can hold examples of a kind."""
    return [name for name, layout in LAYOUTS.items() if kind in layout.kinds]


def layouts_of(columns: Collection[str]) -> list[str]:
    """Return the names of the layouts whose columns a file has."""
    return [name for name, layout in LAYOUTS.items() if layout.form_of(columns)]


__all__ = ["LAYOUTS", "Kind", "Layout", "layout_named", "layouts_for", "layouts_of"]
