"""What is wrong with the prompts of a distillation, as the student and as the teacher reads them: before weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from cfg_distill.distillation.ahead import problems_of_data_for_sampler
from cfg_distill.errors import ConfigError, Problem, PromptProblem, shortened
from cfg_distill.generators import Generator, Prompt, PromptLike
from cfg_distill.losses import Divergence
from cfg_distill.sampling import problems_of_lengths, problems_of_reading

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation


@runtime_checkable
class WithPrompts(Protocol):
    """A data module that knows its prompts, as :class:`cfg_distill.data.PromptData` does."""

    prompts: Mapping[str, Sequence[PromptLike]]


@runtime_checkable
class FromFiles(Protocol):
    """A data module that reads the prompts of each part from a file, which it takes as an argument of the part's name."""

    files: Mapping[str, str]


@runtime_checkable
class WithLines(Protocol):
    """A data module that knows where each prompt stands in its file."""

    def located(
        self, part: str, found: Sequence[Problem], asked: Callable[[PromptLike], Sequence[PromptLike]]
    ) -> list[Problem]:
        """Problems of the prompts of a part, with their lines, those with one cause as one."""
        ...


def problems_of_data(module: CFGDistillation, data: Any, stage: str) -> list[Problem]:
    """Why there can be no samples of the prompts of a data module that was set up, or nothing to learn from them.

    Keys are relative to the data module, or paths from the root of the recipe.
    """
    found = [
        each
        for part, given in _parts(data)
        for each in _in_file(module, data, part, module.student.problems_of_prompts(_asked(module, given)))
    ]
    found += problems_of_data_for_sampler(module, data)
    found += _problems_of_lacking(module, data)
    if stage == "fit" and not found:
        found = _problems_of_teaching(module, data)
        found += [] if _needs_weights(module.student) else _problems_of_lengths(module, data)
    found += _problems_of_references(module, data)
    return list(dict.fromkeys(found))


def problems_once_loaded(module: CFGDistillation, data: Any) -> list[Problem]:
    """What only a student with its weights can tell of the prompts of a fit."""
    found = _problems_of_lengths(module, data) if _needs_weights(module.student) else []
    return found or _problems_of_labels(module, data)


def refuse(found: Sequence[Problem]) -> None:
    """Raises ConfigError: problems of a data module, whose keys are those of a recipe."""
    if found:
        raise ConfigError([problem.under("data.init_args") if problem.path else problem for problem in found])


def prompts_in(batch: Any) -> list[PromptLike]:
    """A batch, which is a list of prompts.

    Raises:
        ConfigError: it is something else. The collation of a user's loader decides that.
    """
    if _are_prompts(batch):
        return cast(list[PromptLike], batch)
    if isinstance(batch, Mapping):
        found = f"a {type(batch).__name__} with the keys {', '.join(map(str, batch))}"
    elif isinstance(batch, list | tuple):
        found = f"a {type(batch).__name__} of {', '.join(dict.fromkeys(type(each).__name__ for each in batch))}"
    else:
        found = f"a batch of type {type(batch).__name__}"
    text = f"expected batches that are lists of texts or Prompts, but got {found}. Give the loader a `collate_fn`."
    raise ConfigError(Problem("data", text))


def _needs_weights(student: Generator) -> bool:
    """Whether a generator may need its weights to count the positions of a prompt: by default they are those of its tensors."""
    return type(student).prompt_positions is Generator.prompt_positions


def _problems_of_lengths(module: CFGDistillation, data: Any) -> list[Problem]:
    """Which prompts are too long: of all of them, since a fit must not stop in its middle for one."""
    prompts = [prompt for _, given in _parts(data) for prompt in given]
    contexts = module.guidance.of_teacher(prompts)
    found = [
        each
        for part, given in _parts(data)
        for each in _in_file(
            module, data, part, problems_of_lengths(module.student, _asked(module, given), module.sampling)
        )
    ]
    if not found and contexts != prompts:
        found = _problems_of_contexts(module, data)
    return found or _problems_of_negatives(module, contexts)


def _problems_of_negatives(module: CFGDistillation, contexts: Sequence[PromptLike]) -> list[Problem]:
    """Negative prompts that are too long beside prompts that are not."""
    guidance = module.guidance
    if not contexts or not guidance.active:
        return []
    is_one = len(module.student.negatives(contexts, guidance)) == 1
    found = problems_of_lengths(module.student, contexts[:1] if is_one else contexts, module.sampling, guidance)
    if guidance.negative is not None:
        key = "/model.guidance.negative"
    else:
        key = "" if guidance.negative_system is None else "/model.guidance.negative_system"
    return [_at_root(each) if each.path else Problem(key, each.text) for each in found]


def _at_root(problem: Problem) -> Problem:
    """The problem of a sampling, by its key in a recipe."""
    return replace(problem, key="/model.sampling.max_new_tokens") if problem.path == "max_new_tokens" else problem


def _problems_of_labels(module: CFGDistillation, data: Any) -> list[Problem]:
    """Labels that the model reads as nothing, or two of them as the same. Its weights are loaded: an encoder may read them."""
    prompts = next((given[:1] for _, given in _parts(data)), [])
    if module.conditioner is None or not prompts:
        return []
    tensors = module.student.encode(module.conditioner.every(prompts)).tensors
    read = {str([tensor[label].tolist() for tensor in tensors.values()]) for label in range(module.conditioner.values)}
    if len(read) == module.conditioner.values:
        return []
    alike = "it reads all of them alike" if len(read) == 1 else f"it reads only {len(read)} different ones"
    text = (
        f"expected {module.conditioner.values} labels that the model can tell apart, but {alike}. Give other"
        " `@/model.conditioner.init_args.words`, or set `@/model.conditioner.init_args.condition` to one that its template"
        " does not drop, such as `prefix`."
    )
    return [Problem("/model.conditioner", text)]


def _problems_of_references(module: CFGDistillation, data: Any) -> list[Problem]:
    """Prompts that a loss has nothing to compare with, or cannot read: else the fit would end at the batch that holds one."""
    prompts = [str(each) for _, given in _parts(data) for each in given]
    found = [
        each.under(f"model.losses.{name}.init_args")
        for name, loss in module.mix.items()
        for each in loss.problems_of_prompts(prompts)
    ]
    unread = {str(each.prompt): replace(each, prefix="") for each in found if isinstance(each, PromptProblem)}
    # The others are of no part of the data: their keys are those of losses.
    others = [Problem(f"/{each.path}", each.text) for each in found if not isinstance(each, PromptProblem)]
    return others + [
        each
        for part, given in _parts(data)
        for each in _in_file(module, data, part, [unread[str(one)] for one in given if str(one) in unread])
    ]


def _problems_of_teaching(module: CFGDistillation, data: Any) -> list[Problem]:
    """A fit whose every divergence is 0 from the first step to the last, since the teacher is what the student begins as.

    The student then gets no gradient. It may move where anything else differs or pushes: another start, a label, dropout, a
    loss that is no divergence. A generator whose frozen copy is another model is passed by ``allow_no_teacher``.
    """
    moves = module.guidance.active or module.start or module.conditioner is not None or module.dropout
    if moves or module.allow_no_teacher or not all(isinstance(loss, Divergence) for loss in module.mix.values()):
        return []
    prompts = [prompt for _, given in _parts(data) for prompt in given]
    contexts = module.guidance.of_teacher(prompts)
    if not prompts or any(_alone(asked) != read for asked, read in zip(prompts, map(Prompt.of, contexts), strict=True)):
        return []
    text = (
        f"expected a teacher to learn from, but at {module.guidance.scale:g} (no guidance) it is the model that the student"
        " begins as, on the same prompts: the loss is 0. Raise it, set `@/model.guidance.teacher_system`, or give the prompts"
        " a field `teacher_prompt`."
    )
    return [Problem("/model.guidance.scale", text)]


def _alone(prompt: PromptLike) -> Prompt:
    """The prompt without what its teacher reads instead."""
    prompt = Prompt.of(prompt)
    return Prompt(prompt.text, **prompt.conditions)


def _parts(data: Any) -> Iterator[tuple[str, Sequence[PromptLike]]]:
    """The prompts of each part of a data module that knows them; none of any other data, whose ``prompts`` may be anything."""
    if isinstance(data, WithPrompts) and isinstance(data.prompts, Mapping):
        yield from ((part, given) for part, given in data.prompts.items() if _are_prompts(given))


def _are_prompts(given: object) -> bool:
    if isinstance(given, str) or not isinstance(given, Sequence):  # a text is a sequence of texts, too: its letters
        return False
    return all(isinstance(each, str | Prompt) for each in given)


def _in_file(
    module: CFGDistillation, data: Any, part: str, problems: Sequence[str | Problem], by_teacher: bool = False
) -> list[Problem]:
    """Problems of prompts, at the key of the file that holds them, where there is one, and with their lines."""
    found = ConfigError(problems).problems  # a user's generator of version 0.1 returns sentences
    if not (isinstance(data, FromFiles) and isinstance(data.files, Mapping) and part in data.files):
        return [*map(_at_root, found)]

    def asked(prompt: PromptLike) -> Sequence[PromptLike]:
        return module.guidance.of_teacher([prompt]) if by_teacher else _asked(module, [prompt])

    told = []
    for each in data.located(part, found, asked) if isinstance(data, WithLines) else found:
        text = each.text if each.text.startswith("File `") else f"`{data.files[part]}`: {each.text}"
        told.append(_at_root(each) if each.path else Problem(part, text))
    return told


def _asked(module: CFGDistillation, prompts: Sequence[PromptLike]) -> list[PromptLike]:
    """Everything that the student may be asked for some prompts: with each label, where there are some."""
    if module.conditioner is None or module.conditioner.problems():
        return [*prompts]
    return [*prompts, *module.conditioner.every(prompts)]


def _problems_of_lacking(module: CFGDistillation, data: Any) -> list[Problem]:
    """Prompts without a context for the teacher, where others have one."""
    every = [(part, Prompt.of(each)) for part, given in _parts(data) for each in given]
    lacking = [(part, prompt) for part, prompt in every if prompt.teacher_prompt is None]
    num_having = len(every) - len(lacking)
    if not lacking or not num_having:
        return []
    part, first = lacking[0]
    others = "1 other prompt has" if num_having == 1 else f"{num_having} other prompts have"
    none = "this one has" if len(lacking) == 1 else f"this one and {len(lacking) - 1} more have"
    text = (
        f"Prompt `{first.text}`: expected a `teacher_prompt`, since {others} one, but {none} none. Give one to all, or write"
        " `{prompt}` for the prompt itself."
    )
    return _in_file(module, data, part, [text])


def _problems_of_contexts(module: CFGDistillation, data: Any) -> list[Problem]:
    """Why the teacher cannot read its contexts, or has no positions left for samples: one problem for all prompts."""
    student, length = module.student, module.sampling.max_new_tokens
    every = [(part, Prompt.of(each)) for part, given in _parts(data) for each in given]
    contexts = module.guidance.of_teacher([prompt for _, prompt in every])
    found = []
    for part, given in _parts(data):
        unread = problems_of_reading(student, module.guidance.of_teacher(given))
        told = _in_file(module, data, part, unread, by_teacher=True)
        found += [replace(each, text=f"As the teacher reads it: {each.text}") for each in told]
    if found:
        return found
    taken = [student.prompt_positions([context]) for context in contexts]
    limit, longest = student.max_positions, max(range(len(taken)), key=taken.__getitem__)
    if limit is None or taken[longest] + student.reserved_positions + length <= limit:
        return []
    part, prompt = every[longest]
    own, system = prompt.teacher_prompt is not None, module.guidance.teacher_system is not None
    context = " and ".join(["this system message"] * system + ["its `teacher_prompt`"] * own)
    shorten = "one of the two" if own and system else "its `teacher_prompt`" if own else "it"
    text = (
        f"expected at most {limit - student.reserved_positions - length} positions for prompt `{shortened(prompt.text)}` with"
        f" {context}, since the model has {limit} and `@/model.sampling.max_new_tokens` is {length}, but the teacher reads"
        f" {taken[longest]}. Shorten {shorten}, or lower `@/model.sampling.max_new_tokens`."
    )
    return [Problem("/model.guidance.teacher_system", text)] if system else _in_file(module, data, part, [text])
