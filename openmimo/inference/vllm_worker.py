"""What openmimo adds to vLLM's worker: it runs in vLLM's process, as `--worker-extension-cls`.

vLLM makes its worker a subclass of `WorkerExtension` and lets clients call the methods by name
(`collective_rpc`). Written for vLLM's model runner V1, which every CPU uses; V2 is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openmimo.inference.shared_weights import read_chunk

_GREEDY = 1e-5
"""vLLM's: a lower temperature is greedy."""


class WorkerExtension:
    """Methods that clients call; each takes text, as vLLM's HTTP endpoint passes nothing else.

    Attributes used of vLLM's worker: model_runner, vllm_config.
    """

    model_runner: Any
    vllm_config: Any

    def openmimo_prepare(self, used_vocab: str) -> None:
        """Make every model's logits -inf from id `used_vocab` on, and log-probs the protocol's.

        Written over the logits, so that sampling, drafting, log-probs and prompt scores agree; the
        cost is that of filling the unused columns. vLLM's own way is a list of all allowed ids
        with every request.

        Raises:
            RuntimeError: the model runner is not V1.
        """
        if not hasattr(self.model_runner.sampler, "topk_topp_sampler"):
            raise RuntimeError("openmimo needs vLLM's model runner V1: VLLM_USE_V2_MODEL_RUNNER=0")
        for model in self._openmimo_models():
            _mask_logits(model, int(used_vocab))
        if not hasattr(self.model_runner.sampler, "openmimo_sample"):
            _temper_log_probs(self.model_runner)

    def openmimo_start_update(self, drafter: str) -> None:
        """Begin new weights: of the drafter if `drafter` is "1", else of the model itself."""
        from vllm.config import CompilationMode, set_current_vllm_config
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        # On a CPU the kernels' weights are packed anew, in other memory, and compiled code may
        # still see the old ones. In float32 it did not, but that depends on the CPU.
        compiled = self.vllm_config.compilation_config.mode != CompilationMode.NONE
        if compiled and self.vllm_config.device_config.device_type == "cpu":
            raise RuntimeError(
                "weights of compiled code on a CPU cannot be changed: --enforce-eager"
            )
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self._openmimo_models()[int(drafter)])

    def openmimo_load(self, drafter: str, message: str) -> None:
        """Take a chunk of `shared_weights.write_chunks`."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):
            self._openmimo_models()[int(drafter)].load_weights(read_chunk(message))

    def openmimo_finish_update(self, drafter: str) -> None:
        """Make the weights ready for the kernels; caches are the client's business."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            model = self._openmimo_models()[int(drafter)]
            finalize_layerwise_reload(model, self.vllm_config.model_config)

    def _openmimo_models(self) -> list[Any]:
        """The model, and the drafter if there is one."""
        runner = self.model_runner
        return [model for model in (runner.get_model(), runner.get_draft_model()) if model]


def _mask_logits(model: Any, used_vocab: int) -> None:
    if not hasattr(model, "openmimo_used_vocab"):
        compute = model.compute_logits

        def masked(*args: Any, **kwargs: Any) -> Tensor | None:
            logits = compute(*args, **kwargs)
            if logits is not None:  # None: not the tensor-parallel rank that samples
                logits[..., model.openmimo_used_vocab :] = -torch.inf
            return logits

        model.compute_logits = masked
    model.openmimo_used_vocab = used_vocab


def _temper_log_probs(runner: Any) -> None:
    """Report log-probs at the request's temperature, before min-p, top-k and top-p cut.

    vLLM has them before both (`raw_logprobs`) or after both (`processed_logprobs`). The mode must
    be the second: its place in the code is where the tempered ones are put.
    """
    sampler = runner.sampler
    sample = sampler.sample

    def tempered_sample(logits: Tensor, metadata: Any, override: str | None = None) -> Any:
        wanted = metadata.max_num_logprobs is not None
        before = logits.clone() if wanted else logits
        sampled, log_probs = sample(logits, metadata, override)
        if wanted:
            log_probs = sampler.compute_logprobs(_tempered(before, metadata.temperature))
        return sampled, log_probs

    sampler.openmimo_sample = sampler.sample = tempered_sample
    if rejection := getattr(runner, "rejection_sampler", None):
        _temper_accepted(rejection)
        _repair_settings()


def _temper_accepted(rejection: Any) -> None:
    """The same for the positions at which a draft is checked."""
    forward, get = rejection.forward, rejection._get_logprobs_tensors

    def tempered_forward(metadata: Any, draft_probs: Any, logits: Tensor, sampling: Any) -> Any:
        def tempered_get(most: int, metadata: Any, logits: Tensor, cut: Any, *rest: Any) -> Any:
            checked = logits[metadata.target_logits_indices].float()
            temperature = sampling.temperature
            if temperature is not None:
                drafts = torch.tensor(metadata.num_draft_tokens, device=temperature.device)
                temperature = temperature.repeat_interleave(drafts)
            return get(most, metadata, logits, _tempered(checked, temperature), *rest)

        rejection._get_logprobs_tensors = tempered_get
        return forward(metadata, draft_probs, logits, sampling)

    rejection.forward = tempered_forward


def _repair_settings() -> None:
    """Give every checked draft the settings of its request.

    vLLM 0.32 on a CPU computes them into a copy, so that temperature, top-p and top-k of these
    positions are whatever lay in memory.
    """
    from vllm.v1.sample import rejection_sampler

    def expand(
        x: Tensor, ends: Tensor, count: int, replace_from: int = 0, replace_to: int = 0
    ) -> Tensor:
        drafts = torch.diff(ends, prepend=ends.new_zeros(1))
        replaced = torch.where(x == replace_from, replace_to, x).to(x.dtype)
        return replaced.repeat_interleave(drafts, output_size=count)

    rejection_sampler.expand_batch_to_tokens = expand


def _tempered(logits: Tensor, temperature: Tensor | None) -> Tensor:
    """logits [n, V] / temperature [n]; None: all are greedy, which is reported at temperature 1."""
    if temperature is None:
        return logits
    return logits / torch.where(temperature < _GREEDY, 1.0, temperature)[:, None]
