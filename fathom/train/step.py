"""One optimizer step: gradients over micro-batches, then clip, the optimizer and the routers' bias.

X sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fathom.errors import DataError, ResourceError, TrainError
from fathom.kernels.products import product_choice
from fathom.model.decoder import Decoder, DecoderOutput
from fathom.model.device import to_device
from fathom.model.forward_options import RoutingOptions
from fathom.model.moe import Router, Routing, chosen_experts, exempt_sequences, routing_agreement_sums
from fathom.model.moe.balance import expert_counts, num_dropped_pairs, updated_bias
from fathom.model.vision import ImageBatch
from fathom.spec.model import ModelSpec
from fathom.spec.rollout import OnlineSpec
from fathom.spec.targets import IGNORE_INDEX
from fathom.spec.train import UpdateSpec
from fathom.train import optimizer as optim
from fathom.train.gradients import Gradients, MicroBatchSums, Observation
from fathom.train.group import ALONE, Group
from fathom.train.loss import mtp_loss, total_balance_loss
from fathom.train.micro_batch import MicroBatch, check_values, with_last
from fathom.train.objective import LanguageModelling, Objective


@dataclass(frozen=True, slots=True)
class StepDraws:
    """What is drawn for each sequence of a step's whole batch; None where nothing is."""

    exempt_B: Tensor | None
    seeds_B: Tensor | None

    def of(self, micro: MicroBatch, *, replay: bool) -> RoutingOptions:
        """Return what routers are given of a micro-batch; of packed sequences none is dropped and nothing drawn."""
        rows, routes_NLK = micro.packed is None, micro.routes_NLK
        if replay and routes_NLK is None:
            raise DataError('batch: has no routes to replay; give column "routes", or leave replay_routing out')
        return RoutingOptions(
            drop_exempt_B=self.exempt_B[micro.sequences] if rows and self.exempt_B is not None else None,
            seeds_B=self.seeds_B[micro.sequences] if rows and self.seeds_B is not None else None,
            replayed_experts_BTLK=routes_NLK[None] if replay and routes_NLK is not None else None,
        )


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
        self.layer_names = moe_layer_names(model.spec)
        self._routers = {
            self.layer_names.index(name.removesuffix(".mlp.gate")): module
            for name, module in model.named_modules()
            if isinstance(module, Router)
        }
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
        sums, draws = self._sums(), self._draws(sequences, number)
        try:
            self._run(micros, draws, number, sums, observe)
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
            for place, router in self._routers.items():
                bias_E = router.e_score_correction_bias
                if bias_E is not None and place < len(gradients.counts_LE):
                    bias_E.copy_(updated_bias(bias_E, gradients.counts_LE[place], self._bias_rate))

    def discard(self) -> None:
        """Free the gradients without using them."""
        self.optimizer.zero_grad(set_to_none=True)

    def _run(
        self, micros: Iterable[MicroBatch], draws: StepDraws, number: int, sums: MicroBatchSums, observe: bool
    ) -> None:
        """Add the gradients and sums of a step's micro-batches, one after another."""
        for micro, last in with_last(micros):
            self.group.begin_micro_batch(self.model, last=last)
            self._check(micro)
            if self.model.adaptation is not None:
                seed = counter_seed(self.spec.seed, number) + (micro.sequences.start or 0)
                self.model.adaptation.seed.value = seed % 2**63
            self._forward_backward(micro, draws, sums, observe)

    def _check(self, micro: MicroBatch) -> None:
        moe = self.model.spec.moe
        check_values(micro, self.model.spec.vocab_size, moe.n_routed_experts if moe is not None else 0)

    def _forward_backward(self, micro: MicroBatch, draws: StepDraws, sums: MicroBatchSums, observe: bool) -> None:
        """Add one micro-batch's gradients and sums; nothing of its graph outlives the call."""
        with self.autocast():
            output = self.model(
                micro.tokens_BT,
                features_ND=self._features(micro.images),
                packed=micro.packed,
                routing=draws.of(micro, replay=self._replay),
                checkpoint_activations=self.spec.activation_checkpointing,
                mtp=self._with_mtp and micro.packed is None,
                cache=self.group.attention_cache(self.model, len(self.model.layers)),
                form="expanded",
            )
            loss = self._loss(output, micro, sums, observe)
        del output
        check_trainable(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def _loss(
        self, output: DecoderOutput, micro: MicroBatch, sums: MicroBatchSums, observe: bool, first: int = 0
    ) -> Tensor:
        """Return a micro-batch's part of all losses together, and add what is counted of it."""
        objective_output = self.objective(self.model, output.hidden_BTD, micro)
        if micro.idle:
            return objective_output.loss * 0.0
        losses_3 = self._losses(objective_output.loss, output, micro)
        further = {name: value.detach() for name, value in objective_output.sums.items()}
        self._count(output.routing, micro, sums, observe, first)
        sums.add(losses_3.detach(), further)
        if observe and objective_output.loss_BT is not None:
            self._by_source(objective_output.loss_BT.detach().sum(1), micro, sums)
        return losses_3.sum()

    def _features(self, images: ImageBatch | None) -> Tensor | None:
        if images is None:
            return None
        if self.model.vision is None:
            raise DataError(f"batch: holds images, but {self.model.spec.name} sees none; set model.vision")
        features_IND: Tensor = self.model.vision(images)
        return features_IND.flatten(0, 1)

    def _losses(self, objective: Tensor, output: DecoderOutput, micro: MicroBatch) -> Tensor:
        further = torch.zeros_like(objective)
        if output.mtp_hidden:
            weight, chunk = self.spec.mtp_loss_weight, self.spec.loss_chunk_tokens
            loss = partial(
                mtp_loss, targets_BT=micro.targets_BT, ends_BT=micro.ends_BT, weight=weight, chunk_tokens=chunk
            )
            further = self.model.apply_head(output.mtp_hidden, loss) * micro.target_fraction
        return torch.stack((objective, self._balance(output.routing, micro).to(objective), further))

    def _balance(self, routing: tuple[Routing, ...], micro: MicroBatch) -> Tensor:
        """Return the balance losses of layers over a micro-batch."""
        moe = self.model.spec.moe
        if micro.idle or not self._balanced or not routing or moe is None:
            return torch.zeros((), device=self.device)
        loss = total_balance_loss(
            self.group.whole_sequences(routing),
            moe,
            packed=micro.packed,
            sequence_share=micro.sequence_fraction,
            token_share=micro.token_fraction,
        )
        return self.group.shared_loss(loss)

    def _count(
        self, routing: tuple[Routing, ...], micro: MicroBatch, sums: MicroBatchSums, observe: bool, first: int = 0
    ) -> None:
        """Add how often experts of consecutive layers were chosen, the ``first`` of which is so many mixtures deep."""
        if micro.idle or not routing:
            return
        if observe or self._bias_rate:
            experts, sums.layers = sums.counts_LE.shape[1], max(sums.layers, first + len(routing))
            counts_LE = torch.stack([expert_counts(routed, experts) for routed in routing])
            sums.counts_LE[first : first + len(routing)] += counts_LE
            if observe:
                sums.dropped += torch.stack([num_dropped_pairs(routed) for routed in routing]).sum()
        if micro.routes_NLK is not None:
            layers = self.model.spec.num_moe_layers
            recorded_NLK = micro.routes_NLK[:, first : first + len(routing)]
            agreed = routing_agreement_sums(recorded_NLK, chosen_experts(routing)[0])
            sums.add_sums({name: value * (len(routing) / layers) for name, value in agreed.items()})

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
        norm = self.group.gradient_norm(self.parameters)
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

    def _sums(self) -> MicroBatchSums:
        moe = self.model.spec.moe
        experts = moe.n_routed_experts if moe is not None else 0
        return MicroBatchSums(self.device, self.sources, len(self.layer_names), experts)

    def _draws(self, sequences: int, number: int) -> StepDraws:
        """What a step draws for each sequence: whether experts may drop it, and the seed of what routers draw."""
        moe = self.model.spec.moe
        exempt_B = seeds_B = None
        generator = torch.Generator()
        if moe is not None and moe.router.balance.capacity_factor is not None:
            generator.manual_seed(counter_seed(self.spec.seed, number))
            fraction = moe.router.balance.drop_exempt_fraction
            exempt_B = to_device(exempt_sequences(sequences, fraction, generator), self.device)
        if moe is not None and moe.router.draws:
            generator.manual_seed(counter_seed(self.spec.seed, number))
            seeds_B = to_device(torch.randint(2**62, (sequences,), generator=generator), self.device)
        return StepDraws(exempt_B, seeds_B)

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


def moe_layer_names(spec: ModelSpec) -> list[str]:
    """Return the names of a model's layers with experts, those of MTP modules last."""
    layers = [f"layers.{index}" for index in range(spec.num_hidden_layers) if spec.is_moe_layer(index)]
    modules = spec.num_nextn_predict_layers if spec.moe is not None else 0
    return layers + [f"mtp.{index}.block" for index in range(modules)]


def check_trainable(loss: Tensor) -> None:
    """Refuse a loss that no trainable parameter takes part in."""
    if not loss.requires_grad:
        raise TrainError(
            "frozen: no trainable parameter takes part in this batch; shorten frozen, and resume with changes allowed"
        ).with_changes(frozen=())


def counter_seed(seed: int, step: int) -> int:
    """A generator seed from a counter, so that a step draws the same whatever ran before it: 63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()) >> 1


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _is_compiler_failure(error: RuntimeError | MemoryError) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
