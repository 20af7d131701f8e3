"""What an error tracker sees of an error: the variables of each frame, of its causes and contexts too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = str(Path(__file__).parents[1])


def variables(error: BaseException) -> Iterator[str]:
    """`module.function: name = value` for each variable, except those of the tests' own frames."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        # Also what `raise ... from None` hides from a printed traceback.
        todo += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        yield f"{type(one).__name__}: {one} {one.args!r} {vars(one)!r}"
        trace = one.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if not code.co_filename.startswith(TESTS):
                for name, value in trace.tb_frame.f_locals.items():
                    yield f"{Path(code.co_filename).stem}.{code.co_name}: {name} = {shown(value)}"
            trace = trace.tb_next


def shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - half-made objects have no repr; error trackers go on, too
        return ""
