"""A bridge to the PEFT library: its adapter types as variants, ``{method: peft, type: VERA, config: {r: 256}}``.

``type`` is a PEFT type (LORA, IA3, OFT, BOFT, VERA, ADALORA, ...) or DORA; ``config`` holds fields of its configuration
class under PEFT's own names. Targets are named by role, as for every method here; so are IA3's ``feedforward_modules``,
which default to "down". Adapters train in float32. A type that PEFT cannot merge is predicted as attached.

Types that change the model's input instead of its layers (prompts, prefixes), that train layers of the base itself (of
which these targets would be all) and starts that PEFT computes from data
(EVA, CorDA, LoRA-GA, LoftQ) are refused, and so is a configuration that PEFT would replace by another with a warning.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import Method, NotMergeable, Run, Step, log_uniform

from ._adalora import Budget
from ._linear import Targets, adapter_dtype, is_conv1d

_ALIASES = {"DORA": ("LORA", {"use_dora": True})}
_OURS = {"peft_type", "task_type", "target_modules", "inference_mode", "total_step", "rank_pattern", "fan_in_fan_out"}
_OURS |= {"base_model_name_or_path", "revision", "auto_mapping", "peft_version"}
_NOT_LAYERS = {"ADAPTION_PROMPT", "LN_TUNING", "POLY", "SHADOW", "TRAINABLE_TOKENS"}
_MOVED = {"C3A", "FOURIERFT", "UNILORA", "VBLORA"}
_FROM_DATA = ("eva", "corda", "lora_ga", "loftq")


@dataclass
class PEFT(Method):
    learning_rate: float = field(default=2e-4, metadata={"search": log_uniform(1e-5, 1e-2)})
    type: str = "LORA"
    config: dict = field(default_factory=dict)
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        config = self._configuration(model, run)
        unstarted = [name for name, value in self.config.items() if name.startswith("init_") and value is False]
        if config.peft_type in _MOVED or unstarted:
            self.changes_init = f"PEFT's {self.type} starts with a random update"
        had = {id(buffer) for buffer in model.buffers()}
        self._tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, adapter_name="default")
        self._layers = self._tuner_layers(model)
        self._check_factors(config)
        for name, shared in self._shared().items():
            model.add_module(name, shared)
        self._raise_adapters(model, had)
        self._budget = Budget(model, self._tuner) if config.peft_type == "ADALORA" else None

    def penalty(self, model: nn.Module) -> Tensor | None:
        return self._budget.penalty() if self._budget else None

    def after_step(self, model: nn.Module, step: Step) -> None:
        if self._budget:
            self._budget.allocate(step.index + 1)

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """In float32: base weights and biases are raised, merged by PEFT and cast once. A failure leaves all as it was."""
        bases = [layer.get_base_layer() for layer in self._layers]
        weights = [p for base in bases for p in (base.weight, getattr(base, "bias", None)) if p is not None]
        before = [weight.data for weight in weights]
        try:
            for weight in weights:
                weight.data = weight.data.to(adapter_dtype(weight), copy=True)
            for layer in self._layers:
                layer.merge()
        except (NotImplementedError, AttributeError, ValueError, RuntimeError) as error:
            for weight, old in zip(weights, before, strict=True):
                weight.data = old
            for layer in self._layers:
                layer.merged_adapters.clear()
            raise NotMergeable(f"PEFT's {self.type} does not merge: {error or type(error).__name__}") from None
        for weight, old in zip(weights, before, strict=True):
            weight.data = weight.data.to(old.dtype)
        for name in self._shared():
            delattr(model, name)
        self._tuner.unload()

    def _configuration(self, model: nn.Module, run: Run) -> object:
        """PEFT's configuration object. Raises ValueError for an unknown type or field, naming those there are."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

        name, given = _ALIASES.get(self.type.upper(), (self.type.upper(), {}))
        kinds = {t.value: PEFT_TYPE_TO_CONFIG_MAPPING[t] for t in PEFT_TYPE_TO_TUNER_MAPPING}
        kinds = {t: k for t, k in kinds.items() if "target_modules" in _fields(k) and t not in _NOT_LAYERS}
        if name not in kinds:
            raise ValueError(f"PEFT has no adapter of layers {self.type!r}. It has: {', '.join([*_ALIASES, *kinds])}.")
        kind, fields = kinds[name], _fields(kinds[name])
        given = {**given, **self.config}
        self._check_keys(given, fields - _OURS, kind.__name__)
        if given.get("bias", "none") != "none" and adapter_dtype(torch.empty(0, dtype=run.dtype)) != run.dtype:
            raise ValueError(
                f"PEFT's bias={given['bias']!r} trains the base's own biases, which then are float32 beside {run.dtype} "
                "weights; use precision float32 or bfloat16-mixed, or bias: none"
            )
        if isinstance(given.get("init_lora_weights"), str) and any(p.is_meta for p in model.parameters()):
            given["init_lora_weights"] = (
                True  # for counting: starts from the base's weights (PiSSA, OLoRA) have its shapes
            )
        found = run.find(model, self.targets)
        given["target_modules"] = _exactly(n for n, _ in found)
        if "feedforward_modules" in fields:
            inputs = {n for n, _ in run.find(model, given.get("feedforward_modules", "down"))}
            given["feedforward_modules"] = _exactly(n for n, _ in found if n in inputs)
        if "total_step" in fields:
            given["total_step"] = run.total_steps
        if "fan_in_fan_out" in fields:
            given["fan_in_fan_out"] = any(is_conv1d(module) for _, module in found)
        return kind(**given)

    def _check_keys(self, given: dict, fields: set[str], kind: str) -> None:
        for key in given:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                known = ", ".join(sorted(fields))
                raise ValueError(f"PEFT's {kind} has no field {key!r} to set.{hint} It has: {known}.")
        start = given.get("init_lora_weights")
        if isinstance(start, str) and start.lower() in _FROM_DATA:
            raise ValueError(f"init_lora_weights={start!r} needs data when adapters are attached; the bridge has none")

    def _raise_adapters(self, model: nn.Module, had: set[int]) -> None:
        """To float32 what trains and what PEFT registered beside it (VeRA's projections), as it multiplies the two."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(adapter_dtype(parameter))
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if id(buffer) not in had and buffer.is_floating_point():
                    setattr(module, name, buffer.to(adapter_dtype(buffer)))

    def _tuner_layers(self, model: nn.Module) -> list:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def _check_factors(self, config: object) -> None:
        """Without CUDA, PEFT's BOFT falls back to one butterfly factor with a warning only."""
        asked = getattr(config, "boft_n_butterfly_factor", None)
        if asked and any(layer.boft_R["default"].shape[0] != asked for layer in self._layers):
            raise ValueError(f"PEFT's BOFT cannot build {asked} butterfly factors here; the method 'boft' can")

    def _shared(self) -> dict[str, nn.Module]:
        """What the tuner holds for all layers together (VBLoRA's vector bank): the model must own it to train it."""
        held = ((name, module) for name, module in self._tuner.named_children() if name != "model")
        return {f"peft_{name}": module for name, module in held}


def _fields(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def _exactly(names: Sequence[str]) -> str:
    """A pattern that matches these qualified names only; a list would also match their suffixes."""
    return "|".join(map(re.escape, names)) or "(?!)"
