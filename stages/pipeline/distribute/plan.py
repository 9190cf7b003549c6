"""What a run has to do, as DVC's graph says it, in DVC's order."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNTIME = "runtime"
"""The section of params.yaml on which those stages depend that compute on a device."""


@dataclass(frozen=True)
class Cell:
    """A stage of the pipeline.

    Attributes:
        name: as DVC addresses it, train_text2img@0.7-8-0.
        upstream: the stages whose outputs it reads.
        sources: files and folders that it reads and no stage makes, relative to the repository.
        uncached: outputs of other stages that DVC's cache does not hold, likewise.
        computes: whether it depends on the device: it belongs on a GPU where there is one.
    """

    name: str
    upstream: tuple[str, ...]
    sources: tuple[Path, ...]
    uncached: tuple[Path, ...]
    computes: bool


def read_plan(root: Path) -> dict[str, Cell]:
    """All stages of the pipeline dvc.yaml in the order in which `dvc repro` runs them.

    Raises:
        ValueError: DVC refuses the pipeline; its own words.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    try:
        repo = Repo(str(root))
        graph = get_active_graph(repo.index.graph)
        ours = [stage for stage in graph if is_ours(stage)]
        order = plan_repro(graph, ours)
        repo.close()
    except DvcException as error:
        raise ValueError(f"dvc.yaml: {' '.join(str(error).split())}") from error
    made = {out.fs_path: out for stage in graph for out in stage.outs if is_ours(stage)}
    return {stage.name: _cell(stage, graph, made, root) for stage in order if is_ours(stage)}


def is_ours(stage: Any) -> bool:
    """Whether a stage is one of the pipeline dvc.yaml, and not of another one in the repository."""
    return stage.path_in_repo == "dvc.yaml"


def _cell(stage: Any, graph: Any, made: Mapping[str, Any], root: Path) -> Cell:
    from dvc.dependency import ParamsDependency

    sources, uncached, computes = [], [], False
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            computes |= RUNTIME in dep.params
            continue
        origins = list(_origins(dep.fs_path, made))
        if not origins:
            sources.append(Path(os.path.relpath(dep.fs_path, root)))
        uncached += [Path(os.path.relpath(dep.fs_path, root)) for out in origins if not out.use_cache]
    upstream = {each.name for each in graph.successors(stage) if is_ours(each)}
    return Cell(stage.name, tuple(sorted(upstream)), tuple(sources), tuple(uncached), computes)


def _origins(path: str, made: Mapping[str, Any]) -> Iterator[Any]:
    """The outputs that a path is, lies in, or holds."""
    inside = f"{path}{os.sep}"
    return (out for own, out in made.items() if path == own or own.startswith(inside) or path.startswith(f"{own}{os.sep}"))


def sources_of(cells: Mapping[str, Cell]) -> list[Path]:
    """All that stages read and no stage makes, each once; a folder and not what lies in it."""
    found = sorted({source for cell in cells.values() for source in cell.sources})
    return [source for source in found if not any(other in source.parents for other in found)]


def descendants(cells: Mapping[str, Cell], name: str) -> set[str]:
    """The stages that need a stage, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        one = waiting.pop()
        needing = {cell.name for cell in cells.values() if one in cell.upstream} - found
        found |= needing
        waiting += needing
    return found
