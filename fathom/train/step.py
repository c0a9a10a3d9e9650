"""One optimizer step: gradients over micro-batches, then clip, the optimizer and the routers' bias.

X sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from fathom.errors import DataError, ResourceError, TrainError
from fathom.kernels.products import product_choice
from fathom.model.decoder import Decoder, DecoderOutput
from fathom.model.device import to_device
from fathom.model.forward_options import RoutingOptions
from fathom.model.moe import Router, chosen_experts, exempt_sequences, routing_agreement_sums
from fathom.model.moe.balance import expert_counts, num_dropped_pairs, updated_bias
from fathom.model.vision import ImageBatch
from fathom.spec.rollout import OnlineSpec
from fathom.spec.targets import IGNORE_INDEX
from fathom.spec.train import UpdateSpec
from fathom.train import optimizer as optim
from fathom.train.gradients import Gradients, MicroBatchSums, Observation
from fathom.train.group import ALONE, Group
from fathom.train.loss import mtp_loss, total_balance_loss
from fathom.train.micro_batch import MicroBatch, check_values
from fathom.train.objective import LanguageModelling, Objective, ObjectiveOutput


class StepRunner:
    """Takes steps with one model and one optimizer.

    ``accumulate`` leaves the whole batch's gradients in the parameters, ``apply`` uses and frees them, ``discard``
    frees them unused; between steps no gradient is alive. ``balanced`` adds the routers' balance losses. Where a batch
    has a column "routes", sums report how far routers agree with it; ``replay_routing`` sends tokens to these experts.
    ``group`` are the ranks that share each batch: gradients, losses and counts are those of the whole batch on each.
    """

    def __init__(
        self,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        spec: UpdateSpec,
        *,
        sources: int = 0,
        objective: Objective | None = None,
        balanced: bool = True,
        replay_routing: bool = False,
        group: Group = ALONE,
    ) -> None:
        self.model = model
        self.group = group
        self.optimizer = optimizer
        self.spec = spec
        self.sources = sources
        self.objective = objective if objective is not None else LanguageModelling(spec.loss_chunk_tokens)
        self.device = model.device
        self.dtype = resolve_precision(spec, self.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        named = [(name, module) for name, module in model.named_modules() if isinstance(module, Router)]
        self.layer_names = [name.removesuffix(".mlp.gate") for name, _ in named]
        self._routers = [router for _, router in named]
        moe = model.spec.moe
        adapted = model.adaptation is not None  # the base keeps its biases too
        self._bias_rate = moe.router.balance.bias_update_rate if moe is not None and not adapted else 0.0
        self._with_mtp = bool(model.mtp) and spec.mtp_loss_weight > 0
        self._balanced = balanced
        self._replay = replay_routing
        if spec.compile:
            for block in model.layers:
                block.compile()

    def accumulate(self, micros: Iterable[MicroBatch], sequences: int, number: int, *, observe: bool) -> Gradients:
        """Run forward and backward over a whole batch of so many sequences, micro-batch by micro-batch.

        Step ``number`` and the spec's seed decide which sequences no expert may drop and what routers draw, whatever
        the micro-batch size; of packed sequences none is dropped and nothing drawn. Balance losses
        of scope "sequence" are means over the batch's sequences, packed ones too; those of scope "batch" and capacity
        are taken over each micro-batch, as they are over each device's share elsewhere.

        Raises:
            DataError: tokens outside the vocabulary, or no routes to replay.
            ResourceError: memory ran out.
            TrainError: ``compile`` was asked for and the compiler failed.
        """
        exempt_B, seeds_B = self._exempt(sequences, number), self._seeds(sequences, number)
        moe = self.model.spec.moe
        experts = moe.n_routed_experts if moe is not None else 0
        sums = MicroBatchSums(self.device, self.sources, len(self._routers), experts)
        try:
            for micro in micros:
                check_values(micro, self.model.spec.vocab_size, experts)
                exempt = exempt_B[micro.sequences] if exempt_B is not None else None
                seeds = seeds_B[micro.sequences] if seeds_B is not None else None
                if self.model.adaptation is not None:
                    seed = counter_seed(self.spec.seed, number) + (micro.sequences.start or 0)
                    self.model.adaptation.seed.value = seed % 2**63
                objective_output = self._forward_backward(micro, exempt, seeds, sums, observe)
                if observe and objective_output.loss_BT is not None:
                    self._by_source(objective_output.loss_BT.sum(1), micro, sums)
        except (RuntimeError, MemoryError) as error:
            explained = self._explained(error)
            if explained is None:
                raise
            raise explained from error
        return self._gradients(sums, observe)

    def apply(self, gradients: Gradients, rate: float) -> None:
        """Clip, take a step at ``rate``, move the routers' biases by the whole batch's load, free gradients."""
        if gradients.norm_value > self.spec.max_grad_norm:
            optim.clip_gradients(self.parameters, self.spec.max_grad_norm, gradients.norm)
        optim.set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.discard()
        if self._bias_rate and gradients.counts_LE is not None:
            for router, counts_E in zip(self._routers, gradients.counts_LE, strict=False):
                bias_E = router.e_score_correction_bias
                if bias_E is not None:
                    bias_E.copy_(updated_bias(bias_E, counts_E, self._bias_rate))

    def discard(self) -> None:
        """Free the gradients without using them."""
        self.optimizer.zero_grad(set_to_none=True)

    def _forward_backward(
        self, micro: MicroBatch, exempt_B: Tensor | None, seeds_B: Tensor | None, sums: MicroBatchSums, observe: bool
    ) -> ObjectiveOutput:
        """Add one micro-batch's gradients and sums; nothing of its graph outlives the call."""
        packed, routes_NLK = micro.packed is not None, micro.routes_NLK
        if self._replay and routes_NLK is None:
            raise DataError('batch: has no routes to replay; give column "routes", or leave replay_routing out')
        with self.autocast():
            output = self.model(
                micro.tokens_BT,
                features_ND=self._features(micro.images),
                packed=micro.packed,
                routing=RoutingOptions(
                    drop_exempt_B=None if packed else exempt_B,
                    seeds_B=None if packed else seeds_B,
                    replayed_experts_BTLK=routes_NLK[None] if self._replay and routes_NLK is not None else None,
                ),
                checkpoint_activations=self.spec.activation_checkpointing,
                mtp=self._with_mtp and not packed,
            )
            objective_output = self.objective(self.model, output.hidden_BTD, micro)
            losses_3 = self._losses(objective_output.loss, output, micro)
        if output.routing and (observe or self._bias_rate):
            self._count(output, sums, observe)
        further = {name: value.detach() for name, value in objective_output.sums.items()}
        if routes_NLK is not None and output.routing:
            further |= routing_agreement_sums(routes_NLK, chosen_experts(output.routing)[0])
        del output
        if not losses_3.requires_grad:
            raise TrainError(
                "frozen: no trainable parameter takes part in this batch; shorten frozen, "
                "and resume with changes allowed"
            ).with_changes(frozen=())
        losses_3.sum().backward()  # type: ignore[no-untyped-call]
        sums.add(losses_3.detach(), further)
        return ObjectiveOutput(objective_output.loss.detach(), loss_BT=objective_output.loss_BT)

    def _features(self, images: ImageBatch | None) -> Tensor | None:
        if images is None:
            return None
        if self.model.vision is None:
            raise DataError(f"batch: holds images, but {self.model.spec.name} sees none; set model.vision")
        features_IND: Tensor = self.model.vision(images)
        return features_IND.flatten(0, 1)

    def _losses(self, objective: Tensor, output: DecoderOutput, micro: MicroBatch) -> Tensor:
        moe = self.model.spec.moe
        balance = further = torch.zeros_like(objective)
        if self._balanced and output.routing and moe is not None:
            balance = total_balance_loss(
                output.routing,
                moe,
                packed=micro.packed,
                sequence_share=micro.sequence_fraction,
                token_share=micro.token_fraction,
            )
        if output.mtp_hidden:
            weight, chunk = self.spec.mtp_loss_weight, self.spec.loss_chunk_tokens
            loss = partial(
                mtp_loss, targets_BT=micro.targets_BT, ends_BT=micro.ends_BT, weight=weight, chunk_tokens=chunk
            )
            further = self.model.apply_head(output.mtp_hidden, loss) * micro.target_fraction
        return torch.stack((objective, balance, further))

    def _count(self, output: DecoderOutput, sums: MicroBatchSums, observe: bool) -> None:
        experts, sums.layers = sums.counts_LE.shape[1], len(output.routing)
        sums.counts_LE[: sums.layers] += torch.stack([expert_counts(routed, experts) for routed in output.routing])
        if observe:
            sums.dropped += torch.stack([num_dropped_pairs(routed) for routed in output.routing]).sum()

    def _by_source(self, loss_B: Tensor, micro: MicroBatch, sums: MicroBatchSums) -> None:
        if micro.source_B is None:
            return
        known_B = (micro.source_B >= 0) & (micro.source_B < self.sources)
        slot_B = torch.where(known_B, micro.source_B, self.sources)
        sums.nats_X.index_add_(0, slot_B, loss_B.to(sums.nats_X))
        sums.tokens_X.index_add_(0, slot_B, (micro.targets_BT != IGNORE_INDEX).sum(1))

    def _gradients(self, sums: MicroBatchSums, observe: bool) -> Gradients:
        self.group.sum_gradients(self.parameters)
        sums.reduce(self.group)
        norm = optim.gradient_norm(self.parameters)
        further = [value.to(sums.losses_3)[None] for value in sums.objective_sums.values()]
        main, balance, mtp, norm_value, *rest = torch.cat(
            (sums.losses_3, norm.to(sums.losses_3)[None], *further)
        ).tolist()
        counts_LE = sums.counts_LE[: sums.layers] if sums.layers else None
        observation = None
        if observe:
            nats, tokens = sums.nats_X[:-1].tolist(), sums.tokens_X[:-1].tolist()
            lost = None
            if sums.layers:
                dropped, chosen = torch.stack((sums.dropped, sums.counts_LE.sum())).tolist()
                lost = dropped / max(chosen, 1)
            observation = Observation(counts_LE, lost, nats, tokens)
        named = dict(zip(sums.objective_sums, rest, strict=True))
        return Gradients(main, balance, mtp, norm, norm_value, counts_LE, observation, named)

    def _exempt(self, batch_size: int, number: int) -> Tensor | None:
        moe = self.model.spec.moe
        if moe is None or moe.router.balance.capacity_factor is None:
            return None
        generator = torch.Generator().manual_seed(counter_seed(self.spec.seed, number))
        fraction = moe.router.balance.drop_exempt_fraction
        return to_device(exempt_sequences(batch_size, fraction, generator), self.device)

    def _seeds(self, batch_size: int, number: int) -> Tensor | None:
        """What the routers draw from, one seed a sequence; None where they draw nothing."""
        moe = self.model.spec.moe
        if moe is None or not moe.router.draws:
            return None
        generator = torch.Generator().manual_seed(counter_seed(self.spec.seed, number))
        return to_device(torch.randint(2**62, (batch_size,), generator=generator), self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """The precision in which this runner's forward passes compute."""
        if not torch.amp.is_autocast_available(self.device.type):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _explained(self, error: RuntimeError | MemoryError) -> ResourceError | TrainError | None:
        if _is_out_of_memory(error):
            size = "micro_batch_tokens" if isinstance(self.spec, OnlineSpec) else "batch.micro_batch_size"
            return ResourceError(
                f"memory: ran out while computing gradients; lower {size} or loss_chunk_tokens, "
                "or set activation_checkpointing = true, then resume"
            ).with_changes(activation_checkpointing=True)
        if self.spec.compile and _is_compiler_failure(error):
            return TrainError(
                f"compile: torch.compile failed here ({type(error).__name__}); set compile = false, "
                "or repair the C++ or Triton toolchain"
            ).with_changes(compile=False)
        return None


def resolve_precision(spec: UpdateSpec, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; auto is bfloat16 (autocast) on a GPU, and on a CPU whose units for it are fast.

    Learning from the model's own answers is float32 on every CPU: the engine samples faster in it.
    """
    if spec.precision != "auto":
        return torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
    narrow = device.type == "cuda"
    if device.type == "cpu" and not isinstance(spec, OnlineSpec):
        narrow = product_choice().bfloat16
    return torch.bfloat16 if narrow else torch.float32


def counter_seed(seed: int, step: int) -> int:
    """A generator seed from a counter, so that a step draws the same whatever ran before it: 63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()) >> 1


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _is_compiler_failure(error: RuntimeError | MemoryError) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
