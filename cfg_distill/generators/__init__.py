"""The models to distil: adapters over transformers models, and the same models under guidance."""

from cfg_distill.generators.annealed import Annealed
from cfg_distill.generators.base import DecodingState, Encoded, Generator
from cfg_distill.generators.causal_lm import CausalLM
from cfg_distill.generators.csm import CSM
from cfg_distill.generators.dia import Dia
from cfg_distill.generators.guided import Guided
from cfg_distill.generators.loading import device, open_generator
from cfg_distill.generators.lora import LoRA
from cfg_distill.generators.musicgen import MusicGen
from cfg_distill.generators.predictions import DepthStates, Head, HiddenStates, Logits, Predictions, Scored
from cfg_distill.generators.predictor import Predictor
from cfg_distill.generators.songs import AceStep, YuE
from cfg_distill.guidance import Guidance, Schedule
from cfg_distill.prompt import Prompt, PromptLike

__all__ = [
    "CSM",
    "AceStep",
    "Annealed",
    "CausalLM",
    "DecodingState",
    "DepthStates",
    "Dia",
    "Encoded",
    "Generator",
    "Guidance",
    "Guided",
    "Head",
    "HiddenStates",
    "LoRA",
    "Logits",
    "MusicGen",
    "Predictions",
    "Predictor",
    "Prompt",
    "PromptLike",
    "Schedule",
    "Scored",
    "YuE",
    "device",
    "open_generator",
]
