"""Generators that users wrote for version 0.1 go on working for one release, with a warning for each old name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from tiny import tiny_folder
from torch import Tensor, nn
from transformers import DynamicCache

from cfg_distill.generators import CausalLM, DecodingState, Encoded, Generator, Guided, HiddenStates, Logits, Scored
from cfg_distill.generators.predictor import Predictor, Stream
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, rollout


def from_scratch() -> type[Generator]:
    """A bigram model by the protocol of 0.1: `problems` without a context, `scored`, `Scored`."""

    class Bigram(Generator):
        end_tokens, pad_token, max_positions, path = (0,), 0, None, "bigram"

        def problems(self) -> list[str]:  # type: ignore[override]
            return []

        def load(self) -> Self:
            if not hasattr(self, "model"):
                torch.manual_seed(0)
                self.model = nn.Embedding(8, 8)
            return self

        def load_weights(self, folder: str) -> None: ...

        def save(self, folder: str | Path) -> None: ...

        def encode(self, prompts: Sequence[str | None]) -> Encoded:  # type: ignore[override]
            return Encoded({"last": torch.tensor([len(prompt or "") % 7 for prompt in prompts])})

        def prefill(self, prompts: Sequence[str | None], repeats: int) -> tuple[DecodingState, Scored]:  # type: ignore
            state = DecodingState(DynamicCache(), self.encode(prompts).tensors).repeat_interleave(repeats)
            return self.step(state, state.tensors["last"][:, None])

        def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Scored]:  # type: ignore
            return state, Scored(logits_NKTV=self.model(tokens_NK)[:, :, None])

        def scored(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Scored:  # type: ignore
            first_B = self.encode(prompts).tensors["last"]
            first_N1 = first_B.repeat_interleave(len(tokens_NKT) // len(prompts))[:, None]
            read_NT = torch.cat([first_N1, tokens_NKT[:, 0, :-1]], dim=1)
            return Scored(logits_NKTV=self.model(read_NT)[:, None])

        def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[Any]:
            return [str(tokens_KT.tolist()) for tokens_KT in tokens_NKT]

    return Bigram


@pytest.mark.filterwarnings("ignore:`Scored` is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`DecodingState.repeat_interleave` is:DeprecationWarning")
def test_a_generator_that_defines_scored_is_sampled_guided_and_asked_by_both_names() -> None:
    with pytest.warns(DeprecationWarning, match="Bigram` is `predictions` now"):
        kind = from_scratch()
    generator = kind().load()
    guidance = Guidance(2.0)
    drawn = rollout(generator, ["a", "bbb"], Sampling(samples=3, max_new_tokens=6), guidance, seed=1)
    tokens_NKT, mask_NKT = drawn.tokens_NKT, drawn.mask_NKT
    with torch.no_grad():
        predicted = Guided(generator, guidance).predictions(["a", "bbb"], tokens_NKT, mask_NKT).whole()
    picked_NKT = predicted.log_softmax(-1).gather(-1, tokens_NKT[..., None])[..., 0]
    torch.testing.assert_close(picked_NKT[mask_NKT], drawn.log_probs_BGKT.flatten(0, 1)[mask_NKT])
    with pytest.warns(DeprecationWarning, match="`scored` is `predictions` now"):
        again = Guided(generator, guidance).scored(["a", "bbb"], tokens_NKT, mask_NKT)
    assert torch.equal(again.whole(), predicted)
    assert torch.equal(
        generator.scored(["a"], tokens_NKT, mask_NKT).whole(), generator.logits(["a"], tokens_NKT, mask_NKT)
    )


def test_an_override_of_scored_reaches_the_predictions_of_its_base(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="Doubled` is `predictions` now"):

        class Doubled(CausalLM):
            def scored(self, *rows: Any) -> Any:
                return Logits(2 * super().scored(*rows).whole())

    class Again(Doubled):
        """It overrides nothing: no further warning."""

    path = tiny_folder(tmp_path)
    rows = (["w1"], torch.full((1, 1, 3), 5), torch.ones(1, 1, 3, dtype=torch.bool))
    expected = 2 * CausalLM(path).load().logits(*rows)
    for generator in (Doubled(path).load(), Again(path).load()):
        with pytest.warns(DeprecationWarning, match="`scored` is `predictions` now"):
            assert torch.equal(generator.logits(*rows), expected)


def test_old_names_of_predictions_and_states_give_the_new_ones(tmp_path: Path) -> None:
    generator = CausalLM(tiny_folder(tmp_path)).load()
    state, first = generator.prefill(["w1"], 1)
    assert isinstance(first, HiddenStates) and Stream is Predictor
    with pytest.warns(DeprecationWarning, match="`Scored` is"):
        assert isinstance(Scored(first.states_NTD, first.head), HiddenStates)
    with pytest.warns(DeprecationWarning, match="`Scored` is"):
        logits = Scored(logits_NKTV=first.whole())
    assert isinstance(logits, Logits)
    with pytest.warns(DeprecationWarning, match="is `repeat` now"):
        assert torch.equal(first.repeat_interleave(2).whole(), first.repeat(2).whole())
    with pytest.warns(DeprecationWarning, match="is `join` now"):
        assert (first + first).whole().shape == (1, 1, 2, 16)
    with pytest.warns(DeprecationWarning, match="is `repeat_` now"):
        assert state.repeat_interleave(3) is state and len(state.tensors["mask"]) == 3
    with pytest.warns(DeprecationWarning, match="is `keep_` now"):
        assert state.keep(torch.tensor([0, 2])) is state and len(state.tensors["mask"]) == 2
    assert state.cache.layers[0].keys.shape[0] == 2


def test_states_and_logits_have_one_interface(tmp_path: Path) -> None:
    generator = CausalLM(tiny_folder(tmp_path)).load()
    tokens_NKT = torch.randint(3, 16, (4, 1, 5))
    with torch.no_grad():
        states = generator.predictions(["w1", "w2 w3"], tokens_NKT, torch.ones_like(tokens_NKT).bool())
    assert isinstance(states, HiddenStates)
    logits = Logits(states.whole())
    row_M, position_M = torch.tensor([0, 3, 3]), torch.tensor([4, 0, 2])
    for ours in (states, logits):
        torch.testing.assert_close(ours.at(0, row_M, position_M), logits.logits_NKTV[row_M, 0, position_M])
        assert ours.num_rows == 4 and ours.rows(slice(1, 3)).num_rows == 2
        torch.testing.assert_close(ours.repeat(2).whole()[1::2], logits.whole())
        for other in (states, logits):
            torch.testing.assert_close(ours.join(other).whole(), torch.cat([logits.whole()] * 2, dim=2))
