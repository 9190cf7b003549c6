"""Put a LoRA on the Hugging Face hub: its file, its model card from the report, and the grid.

    python -m stages.pipeline.publish owner/name                                  # the only LoRA there is
    python -m stages.pipeline.publish owner/name --lora text2img-a0.7-r8-s0
    make publish REPO=owner/name LORA=text2img-a0.7-r8-s0

A repository that is new is made private. Files that the hub has and that differ are overwritten after a question only, or with
--overwrite; all others of the repository stay as they are. All of it is one commit. The token is that of `hf auth login`.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.config import load_params
from stages.pipeline.variants import Variant
from stages.report.cards import CARD
from stages.report.sweep import Sweep

REPORT, EXPORTS = Path("data/report"), Path("data/export")


def main(argv: Sequence[str] | None = None) -> None:
    """Gather, look what is there, ask, upload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", help="of the hub: owner/name")
    parser.add_argument("--lora", help="its name, where there are several")
    parser.add_argument("--overwrite", action="store_true", help="do not ask before files of the hub are overwritten")
    options = parser.parse_args(argv)
    with errors_in_one_line("publish"):
        files = gather(chosen(load_params("sweep", Sweep), options.lora))
        publish(options.repo, files, options.overwrite)


def chosen(sweep: Sweep, name: str | None) -> Variant:
    """The training that is meant.

    Raises:
        ValueError: there is none of that name, or several and no name is given.
    """
    found = {variant.name: variant for variant in sweep.trained}
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        given = "name one" if name is None else f"given {name!r}"
        raise ValueError(f"--lora: {given}: the experiment has {', '.join(found)}")
    return found[name]


def gather(variant: Variant) -> dict[str, Path]:
    """The files of a LoRA by their names in the repository.

    Raises:
        FileNotFoundError: the report has no card of it, or it was not trained.
    """
    card, trained = REPORT / "cards" / variant.name, Path(variant.trained)
    if not (card / CARD).is_file():
        raise FileNotFoundError(f"{card / CARD}: missing; run `make repro` first")
    files = {path.relative_to(card).as_posix(): path for path in sorted(card.rglob("*")) if path.is_file()}
    weights = [path for path in sorted(trained.rglob("*.safetensors")) if "step-" not in path.relative_to(trained).as_posix()]
    if not weights:
        raise FileNotFoundError(f"{trained}: no weights there; run `make repro` first")
    files |= {path.relative_to(trained).as_posix(): path for path in weights}
    files |= {path.relative_to(trained).as_posix(): path for path in sorted(trained.rglob("*.json"))}
    extra = {"grid.png": REPORT / "grid.png", f"{variant.name}.safetensors": EXPORTS / f"{variant.name}.safetensors"}
    return files | {name: path for name, path in extra.items() if path.is_file()}


def publish(repo: str, files: Mapping[str, Path], overwrite: bool) -> None:
    """Upload files in one commit; what is the same on the hub is left out.

    Raises:
        ValueError: the hub refuses, or files would be overwritten and nobody agrees.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        url = api.create_repo(repo, private=True, exist_ok=True)
        there = {each.path: each for each in api.list_repo_tree(repo, recursive=True)}
        differing = [name for name, path in files.items() if name in there and not _same(there[name], path)]
        new = [name for name in files if name not in there]
        if not differing and not new:
            print(f"{url}: has all of it already")
            return
        if differing and not overwrite:
            _ask(repo, differing)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name]) for name in (*new, *differing)]
        done = api.create_commit(repo, operations, commit_message="A LoRA, its card and the comparison grid")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise ValueError(f"{repo}: {' '.join(str(error).split())}") from error
    print(f"{done.commit_url}: {len(new)} new, {len(differing)} overwritten, {len(files) - len(operations)} unchanged")


def _same(there: Any, path: Path) -> bool:
    """Whether a file of the hub has the content of a local one, by the digest that the hub gives."""
    if getattr(there, "lfs", None):
        with path.open("rb") as file:
            return there.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
    content = path.read_bytes()
    blob = b"blob %d\0" % len(content) + content  # as git names it
    return there.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _ask(repo: str, names: Sequence[str]) -> None:
    """Ask whether files may be overwritten.

    Raises:
        ValueError: the answer is no, or there is nobody to ask.
    """
    listed = ", ".join(names)
    if not sys.stdin.isatty():
        raise ValueError(f"{repo}: has another {listed}: give --overwrite to replace it")
    if input(f"{repo} has another {listed}. Overwrite? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError(f"{repo}: nothing was changed")


if __name__ == "__main__":
    main()
