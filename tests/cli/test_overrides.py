"""Overrides of the command line put into a recipe as LightningCLI does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cfg_distill.errors import ConfigError
from cfg_distill.recipe import Recipe
from cfg_distill.recipe.files import merge
from cfg_distill.recipe.overrides import Override, put, sorted_words, word_of

RECIPE: dict[str, Any] = {
    "model": {"losses": {"kl": {"class_path": "m.KL", "init_args": {"weight": 1}}}},
    "trainer": {"callbacks": [{"class_path": "m.A"}, {"class_path": "m.B", "init_args": {"x": 1}}]},
}


NAMES: dict[str, Any] = {
    "trainer": {"callbacks": {"checkpoint": {"class_path": "l.ModelCheckpoint"}, "ema": {"class_path": "m.StudentEMA"}}}
}


def after(*words: str, recipe: dict[str, Any] = RECIPE) -> dict[str, Any]:
    for override in sorted_words(words).overrides:
        recipe = put(recipe, override)
    return recipe


def test_words(folder: Path) -> None:
    Path("a.yaml").touch()
    words = [
        "--config",
        "a.yaml",
        "--trainer.devices",
        "2",
        "--data.train=t.txt",
        "--trainer.callbacks+=m.C",
        "--a={b: 1}",
    ]
    found = sorted_words([*words, "--trainer.callbacks.x=2", "--print_config=skip_default", "--model.help"])
    assert found.files == (Path("a.yaml"),)
    assert found.overrides == (
        Override(("trainer", "devices"), "2"),
        Override(("data", "train"), "t.txt"),
        Override(("trainer", "callbacks"), "m.C", append=True),
        Override(("a",), {"b": 1}),
        Override(("trainer", "callbacks", "x"), "2", follows=True),
    )
    assert (found.print_config, found.help) == ("skip_default", ("--model.help",))


def test_the_help_of_a_class_takes_the_word_behind_it() -> None:
    found = sorted_words(
        ["--data.help", "my.Data", "--model.help=my.Model", "--trainer.help", "--trainer.devices", "2"]
    )
    assert found.help == ("--data.help", "my.Data", "--model.help=my.Model", "--trainer.help")
    assert found.overrides == (Override(("trainer", "devices"), "2"),)


def test_quotes_say_that_a_value_is_text() -> None:
    for word, value in (
        ('"[a sad air]"', "[a sad air]"),
        ("'it''s'", "it's"),
        ('"null"', "null"),
        ("'a', 'b'", "'a', 'b'"),
        ('"a" "b"', '"a" "b"'),
        ("'", "'"),
        ("'tis", "'tis"),
    ):
        assert sorted_words([f"--a={word}"]).overrides == (Override(("a",), value),)


@pytest.mark.parametrize(
    "value",
    ["[a sad air]", "{", "{a: 1}", "null", "~", '"so"', "'", "['\u2028\n\U0001f600 ]", " x", "[1, 1e99999]", ""],
)
def test_the_word_of_a_value_is_read_as_that_value(value: str) -> None:
    assert sorted_words([f"--a={word_of(value)}"]).overrides == (Override(("a",), value),)
    assert "\n" not in word_of("[" + 300 * "long ")


def test_the_word_of_a_plain_value_is_the_value() -> None:
    words = {"a b": "a b", "5": "5", "m.C": "m.C", "'tis": "'tis", 5: "5", 0.5: "0.5"}
    assert [word_of(value) for value in words] == list(words.values())
    assert [word_of(value) for value in (None, True, [1, "a"])] == ["null", "true", '[1, "a"]']


def test_a_text_takes_the_place_of_no_keys_and_values() -> None:
    for word, key in (
        ("--trainer=t.yaml", "trainer"),
        ("--trainer=CPU", "trainer"),
        ("--model=m.yml", "model"),
        ("--data=d.json", "data"),
        ("--model.losses.kl=kl.yaml", "model.losses.kl"),
    ):
        with pytest.raises(ConfigError, match=rf"^Key `{key}`: expected keys and values, .* under `{key}:`\.$"):
            after(word)
    assert after("--data=my.Module", "--model=my.Model", recipe={**RECIPE, "data": {"train": "t.txt"}}) == {
        "data": "my.Module", "model": "my.Model", "trainer": RECIPE["trainer"]
    }  # fmt: skip
    assert after("--data.train=d.json", recipe={"data": {"train": "t.txt"}}) == {"data": {"train": "d.json"}}


def test_words_that_are_no_options() -> None:
    with pytest.raises(ConfigError) as refused:
        sorted_words(["a.yaml", "--", "--config=b.yaml", "--trainer.max_steps", "--data.batch_size", "-1"])
    assert list(map(str, refused.value.problems)) == [
        "Expected an option, but got `a.yaml`. A recipe is given as `--config a.yaml`.",
        "Expected an option, but got `--` alone. Take it out.",
        "Option `--config`: expected a YAML file, but `b.yaml` does not exist. See cfg-distill recipes.",
        "Key `trainer.max_steps`: expected a value, but got none. Give one behind it.",
    ]


@pytest.mark.parametrize("key", ["model.losses.kl.init_args.weight", "model.losses.kl.weight"])
def test_one_number_of_a_loss(key: str) -> None:
    assert after(f"--{key}=9")["model"]["losses"]["kl"] == {"class_path": "m.KL", "init_args": {"weight": "9"}}
    assert RECIPE["model"]["losses"]["kl"]["init_args"] == {"weight": 1}


@pytest.mark.parametrize("word", ["--model.losses.kl=m.JS", "--model.losses.kl.class_path=m.JS"])
def test_another_class_drops_the_arguments(word: str) -> None:
    assert after(word)["model"]["losses"]["kl"] in ({"class_path": "m.JS"}, "m.JS")


def test_lists_are_appended_to_and_their_last_entry_reached() -> None:
    assert after("--trainer.callbacks+=m.C")["trainer"]["callbacks"][2] == "m.C"
    assert after("--trainer.callbacks.x=2")["trainer"]["callbacks"][1]["init_args"] == {"x": "2"}


@pytest.mark.parametrize("key", ["ema.decay", "ema.init_args.decay"])
def test_one_number_of_a_named_callback(key: str) -> None:
    changed = after(f"--trainer.callbacks.{key}=0.9", recipe=NAMES)["trainer"]["callbacks"]
    assert changed == NAMES["trainer"]["callbacks"] | {
        "ema": {"class_path": "m.StudentEMA", "init_args": {"decay": "0.9"}}
    }
    listed = {"trainer": {"callbacks": list(NAMES["trainer"]["callbacks"].values())[::-1]}}
    by_class = after(f"--trainer.callbacks.StudentEMA.{key.partition('.')[2]}=0.9", recipe=listed)["trainer"][
        "callbacks"
    ]
    assert by_class == [changed["ema"], changed["checkpoint"]]


def test_options_after_an_appended_one_are_about_it() -> None:
    words = [
        "--trainer.callbacks+=m.C",
        "--trainer.callbacks.x=2",
        "--trainer.callbacks+=m.D",
        "--trainer.callbacks.y=3",
    ]
    added = [{"class_path": "m.C", "init_args": {"x": "2"}}, {"class_path": "m.D", "init_args": {"y": "3"}}]
    assert after(*words)["trainer"]["callbacks"] == [*RECIPE["trainer"]["callbacks"], *added]
    assert list(after(*words, recipe=NAMES)["trainer"]["callbacks"].values())[2:] == added


def test_callbacks_are_added_to_names_and_taken_from_them() -> None:
    words = ["--trainer.callbacks+=m.C", "--trainer.callbacks.x=2", "--trainer.callbacks.ema=null"]
    assert after(*words, recipe=NAMES)["trainer"]["callbacks"] == {
        "checkpoint": {"class_path": "l.ModelCheckpoint"},
        "C": {"class_path": "m.C", "init_args": {"x": "2"}},
    }
    assert set(after("--trainer.callbacks+=m.StudentEMA", recipe=NAMES)["trainer"]["callbacks"]) == {
        "checkpoint", "ema", "StudentEMA"
    }  # fmt: skip


def test_new_keys() -> None:
    assert after("--data.train=t.txt")["data"] == {"train": "t.txt"}


def test_later_files_win_and_another_class_drops_the_arguments() -> None:
    update = {"model": {"losses": {"kl": {"init_args": {"weight": 9}}}}, "trainer": {"callbacks": []}}
    assert merge(RECIPE, update) == {
        "model": {"losses": {"kl": {"class_path": "m.KL", "init_args": {"weight": 9}}}},
        "trainer": {"callbacks": []},
    }
    short = {"model": {"losses": {"kl": {"weight": 9}}}}
    assert merge(RECIPE, short)["model"] == merge(RECIPE, update)["model"]
    other = {"model": {"losses": {"kl": {"class_path": "m.JS"}}}}
    assert merge(RECIPE, other)["model"]["losses"]["kl"] == {"class_path": "m.JS"}


def test_a_file_of_names_changes_one_and_keeps_the_others() -> None:
    update = {"trainer": {"callbacks": {"ema": {"decay": 0.5}, "more": {"class_path": "m.M"}, "checkpoint": None}}}
    ema = {"class_path": "m.StudentEMA", "init_args": {"decay": 0.5}}
    assert merge(NAMES, update)["trainer"]["callbacks"] == {"ema": ema, "more": {"class_path": "m.M"}}
    listed = {"trainer": {"callbacks": list(NAMES["trainer"]["callbacks"].values())}}
    by_class = {"trainer": {"callbacks": {"StudentEMA": {"decay": 0.5}}}}
    assert merge(listed, by_class)["trainer"]["callbacks"] == {"ModelCheckpoint": {"class_path": "l.ModelCheckpoint"},
                                                               "StudentEMA": ema}  # fmt: skip


def test_a_plus_appends_in_a_file_too() -> None:
    more = {"trainer": {"callbacks+": [{"class_path": "m.C"}], "plugins+": "m.P"}}
    assert merge(RECIPE, more)["trainer"] == {
        "callbacks": [*RECIPE["trainer"]["callbacks"], {"class_path": "m.C"}], "plugins": ["m.P"]
    }  # fmt: skip
    assert list(merge(NAMES, more)["trainer"]["callbacks"]) == ["checkpoint", "ema", "C"]


def test_null_takes_a_loss_out_and_is_a_value_elsewhere() -> None:
    assert merge(RECIPE, {"model": {"losses": {"kl": None}, "negative": None}})["model"] == {
        "losses": {},
        "negative": None,
    }


def test_a_recipe_is_resolved_once(folder: Path) -> None:
    Path("a.yaml").write_text("model: {generator: {class_path: m.G, init_args: {path: here, lora: {rank: 4}}}}\n")
    Path("b.yaml").write_text("data: {class_path: m.D, init_args: {train: t.txt, batch_size: 3}}\n")
    recipe = Recipe.read(["a.yaml", "b.yaml"], {"model.generator.path": "there", "model.sampling.samples": 5})
    assert (recipe.run_name, recipe.model_path, recipe.trains_adapter) == ("a", "there", True)
    assert (recipe.prompt_files, recipe.prompt_field, recipe.rows, recipe.max_steps) == (
        {"train": "t.txt"},
        "prompt",
        15,
        -1,
    )
    assert recipe.of_files["model"]["generator"]["init_args"]["path"] == "here"
    assert recipe.names_class("data") and not recipe.names_class("model")
