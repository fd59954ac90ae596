"""Classes named by their import path: found, or why there is none."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from cfg_distill.errors import ConfigError, Problem, closest, listed, nearest


def find_class(
    class_path: Any,
    wanted: tuple[type, ...],
    description: str,
    functions: bool = False,
) -> Any:
    """The class behind a ``class_path`` of a recipe. Recipes are code: any module is imported. For checkpoints, which are
    data, see :func:`cfg_distill.checkpoints.generator_of`.

    Args:
        class_path: ``module.Class``, or the bare name of a class that is imported already.
        wanted: the classes of which it must be one, or a subclass.
        description: of these, for the message: ``a Loss``.
        functions: whether a function may stand there whose type hint says that it returns such a class.

    Raises:
        ConfigError: a problem with the key ``class_path``.
    """
    if not isinstance(class_path, str):
        raise _wrong(f"expected the import path of {description}, but got {class_path!r}.")
    module_name, _, name = class_path.rpartition(".")
    known = {cls.__name__: cls for base in wanted for cls in subclasses(base)}
    if not module_name:
        if name in known:
            return known[name]
        raise _wrong(
            f"expected the import path of {description} (`module.Class`), but got `{name}`.{nearest(name, known)}"
        )
    found = _imported(module_name, name, description, known.values())
    if not isinstance(found, type):
        if functions and _makes(found, wanted):
            return found
        raise _wrong(f"expected {description}, but `{class_path}` is no class.")
    if not issubclass(found, wanted):
        raise _wrong(f"expected {description}, but `{class_path}` is none.")
    if inspect.isabstract(found):
        concrete = sorted({cls.__name__ for cls in subclasses(found) if not inspect.isabstract(cls)})
        if not concrete:  # a class of the user's
            lacks = sorted(vars(found)["__abstractmethods__"])
            own = {name for cls in found.__mro__ if cls.__module__ == found.__module__ for name in vars(cls)}
            like = closest(lacks[0], own - {*lacks})
            hint = f" It has `{like}`." if like else ""
            raise _wrong(
                f"expected {description}, but `{class_path}` lacks {listed([f'`{name}`' for name in lacks])}.{hint}"
            )
        known_kinds = f"Known: {', '.join(concrete)}."
        raise _wrong(f"expected {description}, but `{class_path}` is abstract. Name one of its kinds. {known_kinds}")
    return found


def _makes(function: Any, wanted: tuple[type, ...]) -> bool:
    """Whether the type hint of a function says that it makes one of the classes. Nothing else tells, short of a call."""
    try:
        made = get_type_hints(function).get("return")
    except (TypeError, NameError, AttributeError):  # no function, or hints that mean nothing
        return False
    return isinstance(made, type) and issubclass(made, wanted)


def subclasses(base: type) -> list[type]:
    """A class and everything derived from it that is imported."""
    direct: list[type] = type.__subclasses__(base)
    return [base, *(found for child in direct for found in subclasses(child))]


def _imported(module_name: str, name: str, description: str, known: Iterable[type]) -> Any:
    class_path = f"{module_name}.{name}"
    if module_name.startswith("."):  # `./file.yaml`, of which Python would say that a relative import needs a package
        raise _wrong(f"expected the import path of {description} (`module.Class`), but got `{class_path}`.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there and fails on an import of its own keeps its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = nearest(class_path, [f"{cls.__module__}.{cls.__name__}" for cls in known])
        raise _wrong(
            f"expected the import path of {description}, but for `{class_path}` there is no module `{error.name}`,"
            f" neither installed nor in this folder.{hint}"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        public = [key for key, value in vars(module).items() if inspect.isclass(value)]
        hint = nearest(name, public) or (f" It has {', '.join(sorted(public))}." if public else "")
        raise _wrong(
            f"expected the import path of {description}, but module `{module_name}` has no `{name}`.{hint}"
        ) from error


def _wrong(text: str) -> ConfigError:
    return ConfigError(Problem("class_path", text))


def keep_own_defaults(values: Mapping[str, Any]) -> None:
    """Write the defaults of the optimiser that a recipe names into it.

    jsonargparse would put those of AdamW, the default, in their place, for arguments that both have: SGD would decay weights.

    Args:
        values: of the recipe, which are changed.
    """
    from torch.optim import AdamW, Optimizer

    model = values.get("model")
    settings = model.get("init_args", model) if isinstance(model, dict) else None
    if not isinstance(settings, dict):
        return
    given = settings.get("optimizer")
    spec = {"class_path": given} if isinstance(given, str) else given
    if not isinstance(spec, dict) or "class_path" not in spec:
        return
    try:
        found = find_class(spec["class_path"], (Optimizer,), "an Optimizer")
    except ConfigError:  # the parser says so, with all other problems
        return
    carried = inspect.signature(AdamW).parameters
    own = {
        name: each.default
        for name, each in inspect.signature(found).parameters.items()
        if name in carried and each.default is not each.empty
    }
    settings["optimizer"] = {**spec, "init_args": own | (spec.get("init_args") or {})}
