"""Block-local learning: forward messages meet the messages of a twin network that runs back from the targets.

Kappel et al., arXiv:2305.14974.

    a_k = natural(f_k(sg message(a_{k-1}))): alpha_k(z_k) = p(z_k | x), a law of an exponential family
    u_k = twin_k(sg u_{k+1}),  u_{K+1} = one-hot classes;   b_k(y) = say_k(u_k), centred over y: the messages beta_k
    rho_k proportional to alpha_k beta_k(y)^m
    p_k(y | z) = softmax_y(b_k(y) . t(z))                       linear read-out, or
    p_k(y | z) = softmax_y(v_k(y) . g_k(z)),  v_k = embed_k(u_k)   lifted read-out
    F_k = w KL(rho_k || alpha_k) - E_rho[log p_k(y | z_k)]

t(z): what a latent tells, its sufficient statistic T(z), but of a Gaussian z alone: beta_k(y) = exp(b_k(y) . t(z)).

centre: in rho_k, b_k(y) is less what the block predicts, sum_y' p_k(y') b_k(y') with p_k at the mean of alpha_k, a
constant; a Laplace's as it is.  With a linear read-out that is the gradient of log p_k(y | z), and rho_k nearly the
posterior.  Or it is less the mean over classes alone.

Block k learns f_k, twin_k and its read-outs from F_k; a_k's mean goes up, u_k goes down, both detached.  With w = 1 and
E_rho by sampling or in closed form, F_k bounds -log E_alpha[p_k(y | z_k)] from above, the messages given: any rho does.

Where targets are numbers, p_k(y | z) = N(y; g_k(z)) with a decoder g_k of the block's own, the twin runs on the targets
of the batch, and centred means over the micro-batch: what a sample's target says beyond the others'.  So what is learnt
depends on how many there are, and one alone would say nothing.  F_k is then taken in nats a number.

likelihood: E_rho[log p_k] at a sample of rho, as its bound in closed form, or at the mean of rho.  That is no bound: a
message moves the mean, which a read-out without noise can tell for less divergence than it gains, so that a block is
paid for reading the label off its own message even where alpha knows nothing.  With m = 0 there is no message.

The prediction is made from alpha_K: by the twin's messages, at its mean or averaged over samples, or by the model's own
classifier, trained beside F_K.

B batch, C classes, K blocks, S positions of a block's latents, D channels, N natural parameters of a position; `...` is
B, or B, T where every token has a label, and latents of one position, of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Batch, Cell, frozen_statistics
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit, Message
from sidestep.core.program import Down, Each, Program, Up
from sidestep.core.task import Classification, Regression, Task
from sidestep.core.units import evaluating
from sidestep.families.family import Family, cross_entropy_bound, inner
from sidestep.nn.latents import Latents, Passed, ReadOut, answer_at, answer_of, lifted_width, lifting, opened
from sidestep.nn.mixing import mixing
from sidestep.nn.tiles import Rows, tiled
from sidestep.nn.twins import Twin, twins

from .bll_fields import Fields
from .bll_theory import diagnose
from .latent_block import Said, numbers, parts, surprise
from .local_heads import head_for


@final
@dataclass(frozen=True)
class BLL(Fields):
    """Latents between blocks, each block's law pulled towards the one that the target asks for."""

    reference: ClassVar[str] = "arXiv:2305.14974"

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        slices = plan(model, task.sample)
        lift = self.fitted(task, slices).read_out == "lifted"
        law, count = self.law(), len(slices.bodies)
        # Where the mean is the network's output, the block keeps its activation: else it would have none.
        ends = [(body, None) if law.mean_is_output else opened(body) for body in slices.bodies]
        latents = [
            Latents(law, shape, mapped=closing is None, norm=norm, per_token=task.per_token)
            for shape, (_, closing), norm in zip(slices.features, ends, slices.may_be_sums, strict=True)
        ]
        of_classes = isinstance(task, Classification)
        targets = task.num_classes if of_classes else numbers(task)
        read = list(zip(slices.features, self.lift_norms(slices), strict=True))
        lengths = [lifted_width(shape, self.head, self.head_width, norm=norm) for shape, norm in read if lift]
        back = twins(self.twin, latents, targets, self.twin_width, lengths, one_hot=of_classes)
        blocks: list[Block] = []
        for k, (net, _) in enumerate(ends):
            extras: dict[str, nn.Module] = {"latents": latents[k], "twin": back[k]}
            (shape, norm), kind, width, depth = read[k], self.head, self.head_width, self.head_depth
            if isinstance(task, Regression):
                extras["lift"] = head_for(task, shape, kind, width, depth, norm=norm)
            elif lift:
                extras["lift"] = lifting(shape, kind, width, depth, norm=norm, per_token=task.per_token)
            if k == count - 1 and self.predict == "classifier":
                extras["classifier"] = slices.readout
            blocks.append(Block(k, count, net, **extras).to(task.sample.device))  # where the laws are looked at
        self.check_laws(blocks, task.sample)
        return Chain(blocks, at=slices.at)

    @torch.no_grad()
    def check_laws(self, blocks: Sequence[Block], sample: Tensor) -> None:
        """Raises UsageError where a block gives natural parameters of no law, such as a precision of 0."""
        h = sample
        with evaluating(*blocks):
            for block in blocks:
                latents, _, _ = parts(block)
                out = block.net(h)
                latents.family.check(latents(out))
                h = Passed(latents)(out)

    def program(self) -> Program:
        if self.twin == "linear":
            return (Up(self.match),)
        if self.bootstrap:
            return (Down(self.feedback), Up(self.match))  # what goes up has met the messages
        return (Down(self.feedback), Up(self.forward, reads=False), Each(self.match))

    def inference(self) -> Program:
        return (Up(self.read),) if self.twin == "linear" else (Down(self.feedback), Up(self.read))

    def sink(self, batch: Batch, shared: Message, task: Task) -> Message:
        if isinstance(task, Classification):
            return (torch.eye(task.num_classes, device=batch.x.device),)
        return () if batch.y is None else (batch.y.flatten(1),)

    def feedback(self, cell: Cell, *above: Tensor) -> Emit:
        """above: the state of the twin block after, for every class; at the last block the classes themselves.

        Where targets are numbers there are none at inference, and the answer needs none.
        """
        if not above:
            return Emit()
        state = cell.block.extras["twin"](*above)
        return Emit(send=(state,), keep={"state": state})

    def forward(self, cell: Cell, h: Tensor) -> Emit:
        """h: what is passed on of the latents before."""
        self.check_batch(cell)  # an error must not come after BatchNorm has moved
        latents, _, _ = parts(cell.block)
        raw = latents.raw(cell.block.net(h))
        told = latents.told(raw)
        passed = latents.features(told)
        return Emit(send=(passed,), keep={"raw": raw, "told": told, "passed": passed})

    def match(self, cell: Cell, *before: Tensor) -> Emit:
        """before: what is passed on of the latents before; nothing where `forward` has had it."""
        block, (latents, twin, lift) = cell.block, parts(cell.block)
        of_alpha = self.forward(cell, *before).keep if before else cell.kept
        raw, told, passed = (of_alpha[name] for name in ("raw", "told", "passed"))
        m, (messages, weights) = self.mixed(cell), self.said(cell, twin)
        assert messages is not None
        own = self.own(cell, messages, self.predicted(cell, told, weights))
        law, shared = latents.family, [*latents.learnt, *([] if lift else [messages])]

        def make() -> Rows:
            random, n = cell.generator(), law.learnt
            return lambda raw, own, *shared: self.matched(
                law, m, random, law.around(raw, *shared[:n]), own, *shared[n:]
            )

        far, seen, *of_rho = tiled(make, [raw, own], shared)
        miss = self.miss(cell, seen, weights)
        far, miss = far.mean() / numbers(cell.task), miss.mean() / numbers(cell.task)
        loss = self.kl_weight * far + miss
        if "classifier" in block.extras:
            loss = loss + cell.task.loss(block.extras["classifier"](passed), cell.y, self.label_smoothing)
        send = latents.features(of_rho[0]).to(passed.dtype) if self.bootstrap else passed
        return Emit(send=(send,), loss=loss, metrics={"kl": far.detach(), "miss": miss.detach()})

    def read(self, cell: Cell, h: Tensor) -> Emit:
        """What inference needs of a block: the mean of alpha goes up."""
        block, (latents, twin, lift) = cell.block, parts(cell.block)
        _, weights = self.said(cell, twin)
        raw = latents.raw(block.net(h))
        passed = latents.features(latents.told(raw))
        if "classifier" in block.extras:
            return Emit(send=(passed,), logits=block.extras["classifier"](passed))
        return Emit(send=(passed,), logits=answer_of(latents, raw, weights, lift, self.draws))

    def predicts(self, task: Task) -> bool:
        """Whether messages are centred by what a block predicts."""
        return self.centre == "prediction" and isinstance(task, Classification)

    @torch.no_grad()
    def predicted(self, cell: Cell, told: Tensor, weights: Tensor | None) -> Tensor | None:
        """What the block answers from the mean of alpha, a constant; None where nothing asks for it.

        A learned map gets its running statistics here, if that is what it answers from.
        """
        _, _, lift = parts(cell.block)
        running = lift is not None and not self.draws and any(True for _ in lift.buffers())
        if not running and not self.predicts(cell.task):
            return None
        return self.answer(cell, told.detach(), weights, at_mean=True)

    def own(self, cell: Cell, messages: Tensor, predicted: Tensor | None) -> Tensor:
        """The message of every label, (..., S or 1, D), centred as `centre` says by the logits `predicted`.

        Of soft or smoothed labels the mean message; numbers have one a sample already.
        """
        if isinstance(cell.task, Regression):
            return messages
        soft = self.label_smoothing > 0 or cell.y.is_floating_point()
        own = mixture(cell.target(self.label_smoothing), messages) if soft else of_label(cell.y, messages)
        if not self.predicts(cell.task):
            return own
        assert predicted is not None
        return parts(cell.block)[0].family.less(own, mixture(predicted.softmax(-1), messages))

    def matched(
        self, law: Family, m: float, random: Generator, a: Tensor, own: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """KL(rho || alpha), (...), and what a linear read-out makes of rho: logits, or in closed form prices, (..., C);
        what another one is to see, (..., S, D).  With bootstrapping also what the next block gets, (..., S, D).
        """
        rho = law.tilted(a, own, m)
        fixed = rho.detach()
        far = (law.tilting_kl(a, own, m) if self.detach == "none" else law.kl(fixed, a)).sum(-1)  # over positions
        by = fixed if self.detach == "both" else rho
        if self.likelihood == "closed":
            seen = cross_entropy_bound(law, by, *weights, check=False)
        else:
            told = law.mean_told(by) if self.likelihood == "plug-in" else law.told(law.sample(by, random))
            seen = inner(told, *weights) if weights else told
        return (far, seen, law.mean_told(fixed)) if self.bootstrap else (far, seen)

    def check_batch(self, cell: Cell) -> None:
        """Raises ValueError for what cannot be learnt from."""
        if self.mixed(cell) > 0 and isinstance(cell.task, Regression) and len(cell.y) == 1:
            raise ValueError(
                "got one sample in a micro-batch, expected more: a message about numbers is less the micro-batch's "
                "mean; give larger batches, or m=0."
            )

    def said(self, cell: Cell, twin: Twin) -> Said:
        """The twin's messages, and what the read-out compares with; neither where there are no targets to run on."""
        above = self.sink(cell.batch, (), cell.task) if self.twin == "linear" else ()
        state = twin(*above) if above else cell.kept.get("state")
        if state is None:
            return None, None
        messages = twin.messages(state)
        return messages, twin.weights(state, messages)

    def mixed(self, cell: Cell) -> float:
        """m at this step."""
        schedule, done = mixing(self.m), cell.batch.progress
        if schedule.constant and not self.m_warmup:
            return schedule(0.0)
        if done is None:
            raise ValueError(
                "got an m that changes over training and no total_steps, expected both: tell the engine, or give a "
                "constant m and no m_warmup, as a recorded step (cuda_graph) asks for."
            )
        return schedule(done) * (min(done / self.m_warmup, 1.0) if self.m_warmup else 1.0)

    def miss(self, cell: Cell, seen: Tensor, weights: Tensor | None) -> Tensor:
        """-E_rho[log p_k(y | z)] of every label, (...), or of all numbers of a sample, (B,), of what `matched` sees."""
        _, _, lift = parts(cell.block)
        if self.likelihood == "closed":
            return (cell.target(self.label_smoothing) * seen).sum(-1)
        answer = self.answer(cell, seen, weights, at_mean=False) if lift else seen
        return surprise(cell, answer, self.label_smoothing)

    def answer(self, cell: Cell, told: Tensor, weights: Tensor | None, *, at_mean: bool) -> Tensor:
        """What the read-out makes of t(z) or its mean, (..., S, D): logits (..., C), or what a regression wants.

        A learned map's running statistics are of what it gets at inference: alpha's mean, or samples for answers drawn.
        """
        latents, _, lift = parts(cell.block)
        with frozen_statistics(lift) if lift and at_mean == bool(self.draws) else nullcontext():
            return answer_at(latents, told, weights, lift)

    def diagnostics(self, chain: Chain, batch: Batch, task: Task) -> Mapping[str, Sequence[float | None]]:
        return diagnose(self, chain, batch, task)

    def export(self, chain: Chain) -> nn.Module:
        """x -> logits from the mean of alpha_K, the twin's last weights baked in; or the model's own classifier."""
        stages: list[nn.Module] = []
        for block in chain.blocks:
            latents, twin, lift = parts(block)
            stages.append(block.net)
            if not block.is_last or self.predict == "classifier":
                stages.append(Passed(latents))
        last = chain.blocks[-1]
        if self.predict == "classifier":
            return nn.Sequential(*stages, last.extras["classifier"])
        latents, twin, lift = parts(last)
        if not twin.classes:
            return nn.Sequential(*stages, ReadOut(latents, None, lift, self.draws))
        with torch.no_grad():
            device = next(last.parameters()).device
            state = twin(torch.eye(twin.classes, device=device))
            weights = twin.weights(state, twin.messages(state))
        return nn.Sequential(*stages, ReadOut(latents, weights, lift, self.draws))


def of_label(y: Tensor, messages: Tensor) -> Tensor:
    """The message of every label (...), of the classes' ones (C, S or 1, D): (..., S or 1, D).

    By F.embedding, for the gradient of an index adds up in whatever order its threads come.
    """
    return F.embedding(y, messages.flatten(1)).unflatten(-1, messages.shape[1:])


def mixture(shares: Tensor, messages: Tensor) -> Tensor:
    """The mean message under shares (..., C) of the classes' ones (C, S or 1, D): (..., S or 1, D).

    In full precision: what is left of a label's own message beside it may be small.
    """
    with torch.autocast(messages.device.type, enabled=False):
        return (shares.to(messages) @ messages.flatten(1)).unflatten(-1, messages.shape[1:])
