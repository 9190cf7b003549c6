"""What the work on images and captions is told: where images come from, which are kept, and how captions are made.

Imports neither torch nor Pillow.
"""

from typing import Annotated, Literal

from pydantic import DirectoryPath, Field, FilePath
from pydantic.dataclasses import dataclass

from stages.dataset.file_paths import names_not_utf8, say
from stages.pipeline.config import Commit, Count, Repo, Table, Text, strict

Seconds = Annotated[int, Field(ge=1, le=600)]


@dataclass(frozen=True, config=strict)
class FolderSource:
    """A local folder and its subfolders; manifest.csv in it may say where the images come from, text files what they show.

    Attributes:
        path: the folder.
        masks: a folder of pictures that are white where the image of the same name shows the subject; null for none.
    """

    kind: Literal["folder"]
    path: DirectoryPath
    masks: DirectoryPath | None

    def __post_init__(self) -> None:
        """Name the files for which `dvc repro` would fail without saying which; `sync` checks this before DVC looks at them."""
        say(names_not_utf8(self.path), f"warning: in {self.path}, DVC cannot watch names that are not UTF-8", "rename them")


@dataclass(frozen=True, config=strict)
class HubFilesSource:
    """Image files of a hub dataset repository.

    Attributes:
        repo: hub id.
        revision: commit.
        patterns: shell patterns of the paths to take, such as "train/*"; "*" matches slashes too.
    """

    kind: Literal["hub_files"]
    repo: Repo
    revision: Commit
    patterns: Annotated[tuple[Text, ...], Field(min_length=1)]


@dataclass(frozen=True, config=strict)
class HubDatasetSource:
    """One split of a hub dataset, as `datasets.load_dataset` reads it.

    Attributes:
        repo: hub id.
        revision: commit.
        split: such as "train".
        image_column: such as "image".
        caption_column: of the images' own captions; null for none.
    """

    kind: Literal["hub_dataset"]
    repo: Repo
    revision: Commit
    split: Text
    image_column: Text
    caption_column: Text | None


@dataclass(frozen=True, config=strict)
class UrlsSource:
    """A list of addresses.

    Attributes:
        list: a csv file with the columns source (http or https), source_sha256, licence and, where wanted, caption.
        timeout: seconds without an answer.
    """

    kind: Literal["urls"]
    list: FilePath
    timeout: Seconds


@dataclass(frozen=True, config=strict)
class BingSource:
    """What a Bing search finds today.

    Attributes:
        query: search words.
        limit: how many images to take, the first ones; fewer where Bing has no more.
        timeout: seconds without an answer, for each image.
    """

    kind: Literal["bing"]
    query: Text
    limit: Annotated[int, Field(ge=1, le=1000)]
    timeout: Seconds


ImageSource = Annotated[FolderSource | HubFilesSource | HubDatasetSource | UrlsSource | BingSource, Field(discriminator="kind")]


@dataclass(frozen=True, config=strict)
class CollectionConfig:
    """Which images are good enough, and how many are wanted.

    Attributes:
        on_bad: what an image that cannot be used does: "fail" the whole, or be left out ("skip") with a line that says why.
        min_size: least length of the shorter side, in pixels.
        max_pixels: most pixels of an image; at most the limit beyond which Pillow speaks of decompression bombs.
        min_images: fewer usable images than this are refused.
        max_images: later images of the source are not read; null for all.
        alpha_mask: whether what is transparent in an image is left out of what is learnt from it, as its mask says.
        held_out_images: how many are kept out of every training, so that likeness to them is no copying; which ones depends on
            what they show alone, and neither on names nor on order. 0 for none.
    """

    on_bad: Literal["fail", "skip"]
    min_size: Count
    max_pixels: Annotated[int, Field(ge=1, le=89_478_485)]
    min_images: Count
    max_images: Count | None
    alpha_mask: bool
    held_out_images: Annotated[int, Field(ge=0)]

    def __post_init__(self) -> None:
        """Check that the two counts leave room between them."""
        if self.max_images is not None and self.max_images < self.min_images:
            raise ValueError(f"max_images: {self.max_images} is less than min_images, {self.min_images}")


def held_out_problem(held_out_images: int, total: int, counted_images: str) -> str:
    """What is wrong with holding out so many images of `total`, which are called `counted_images`; "" if some are left."""
    if not held_out_images or held_out_images < total:
        return ""
    of_them = f"of {counted_images}, some must be left to train on"
    return f"download.held_out_images: given {held_out_images}: {of_them}; set it lower (0 compares with the training images)"


@dataclass(frozen=True, config=strict)
class CaptioningConfig:
    """How the captioner is asked about images.

    Attributes:
        prompt: words that every caption begins with, given to the model before it looks; null lets the model begin.
        num_beams: width of the beam search; 1 is greedy.
        max_new_tokens: most tokens of a caption after the prompt.
        batch_size: images at once; another size can change a close call between two words.
    """

    prompt: Text | None
    num_beams: Annotated[int, Field(ge=1, le=32)]
    max_new_tokens: Annotated[int, Field(ge=1, le=512)]
    batch_size: Count


@dataclass(frozen=True, config=strict)
class CaptionEditsConfig:
    """What is done to captions.

    Attributes:
        prefix: phrases put in front of every caption, such as a trigger word; null for none.
        prefixes: of several subjects, by the names of their image sets; sets that are not named have `prefix`.
        drop_phrases: shell patterns of the phrases (what stands between commas) to leave out of the model's captions.
        drop_common_phrases: leave out phrases that stand in at least this share of the model's captions; null keeps them.
        suffix: phrases put behind every caption; null for none.
    """

    prefix: Text | None
    prefixes: Table[Text, Text]
    drop_phrases: tuple[Text, ...]
    drop_common_phrases: Annotated[float, Field(gt=0, le=1)] | None
    suffix: Text | None

    def prefix_of(self, image_set: str) -> str:
        """The phrases in front of the captions of a set; "" for none."""
        return self.prefixes.get(image_set) or self.prefix or ""
