"""Triggers, words and subjects: whether prompts and captions name what is taught."""

from collections.abc import Iterator

from stages.dataset.folders import image_names
from stages.dataset.own_captions import image_sets
from stages.encoding.prompt_syntax import unread_markup
from stages.pipeline.checks.remarks import Configs, Finding, note, refuse
from stages.pipeline.wording import has_phrase


def trigger(configs: Configs) -> Iterator[Finding]:
    """What the trigger is in the prompts and the captions."""
    trigger, subjects = configs[""].trigger, configs[""].subjects
    if trigger is None:
        return

    def named_in(text: str | None) -> bool:
        return any(each.casefold() in (text or "").casefold() for each in (trigger, *subjects.values()))

    drawn = configs["generate"]
    if not any(named_in(prompt) for prompt in drawn.subject_prompts):
        yield refuse(f"trigger: given {trigger!r}: no prompt of generate.subject_prompts names it, so no image would show it")
    if without := [prompt for prompt in drawn.subject_prompts if not named_in(prompt)]:
        yield note(f"generate.subject_prompts: {without[0]!r} does not name the trigger {trigger!r}")
    if named := [prompt for prompt in drawn.other_prompts if named_in(prompt)]:
        yield refuse(f"generate.other_prompts: {named[0]!r} names the trigger {trigger!r}: put it among subject_prompts")
    if configs["sweep"].dreambooth_rank and not named_in(configs["train_dreambooth"].instance_prompt):
        prompt = configs["train_dreambooth"].instance_prompt
        yield note(f"train_dreambooth.instance_prompt: {prompt!r} does not name the trigger {trigger!r}")
    if not named_in(configs["caption"].prefix):
        yield note(f"caption.prefix: {configs['caption'].prefix!r} does not name the trigger {trigger!r}; captions should")


def subjects(configs: Configs) -> Iterator[Finding]:
    """Subjects that have no images, or that nothing is said of."""
    subjects, download = configs[""].subjects, configs["download"]
    if not subjects:
        return
    if download.source.kind == "folder":
        folder = download.source.path
        there = {each.name for each in image_sets(image_names(folder), folder.name).values()} - {""}
        for name in sorted(subjects.keys() - there):
            others = ", ".join(sorted(there)) or "none"
            yield refuse(
                f"subjects: names {name!r}, which is no image set of {folder} (a folder such as 1_{name}); there are: {others}"
            )
    if 0 < download.held_out_images < len(subjects):
        few = f"download.held_out_images: given {download.held_out_images}"
        yield refuse(f"{few}: there are {len(subjects)} subjects: at least one image of each, or 0")
    prompts = configs["generate"].subject_prompts
    for name, trigger in subjects.items():
        if not any(has_phrase(prompt, trigger) for prompt in prompts):
            yield note(f"generate.subject_prompts: none names {trigger!r} (subjects.{name}): nothing is drawn or said of it")
    if configs["sweep"].vectors and len(subjects) > 1:
        yield note(f"sweep.vectors: a word is taught by the images of all {len(subjects)} subjects together")


def prompts(configs: Configs) -> Iterator[Finding]:
    """What A1111 would not read as words, where it is read so."""
    drawn = configs["generate"]
    for setting in ("subject_prompts", "other_prompts") if drawn.prompt_syntax == "plain" else ():
        for prompt in getattr(drawn, setting):
            if markup := unread_markup(prompt):
                yield note(f"generate.{setting}: {prompt!r}: {markup} is read as words; prompt_syntax=a1111 reads it otherwise")


def instance_prompt(configs: Configs) -> Iterator[Finding]:
    """A DreamBooth training without an instance prompt."""
    config = configs["train_dreambooth"]
    if configs["sweep"].dreambooth_rank and config.instance_prompt is None and not config.instance_prompts:
        yield refuse("train_dreambooth.instance_prompt: is null: name the subject, or set sweep.dreambooth_rank to []")


def word(configs: Configs) -> Iterator[Finding]:
    """A word that nothing names, or that no prompt would have."""
    config = configs["train_textual_inversion"]
    if not configs["sweep"].vectors:
        return
    if config.placeholder_token is None:
        yield refuse(
            "train_textual_inversion.placeholder_token: is null: name the word, such as <asuka>, or set sweep.vectors to []"
        )
        return
    words = [each.casefold() for each in (config.placeholder_token, config.replaces) if each]
    prompts = configs["generate"].subject_prompts
    if without := [prompt for prompt in prompts if not any(word in prompt.casefold() for word in words)]:
        yield note(f"generate.subject_prompts: {without[0]!r} has neither {' nor '.join(words)}: no word stands there")
