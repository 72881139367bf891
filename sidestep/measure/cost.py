"""What a method costs on one network: activations, FLOPs, parameters and step time, heads and extractor included."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from sidestep.assemble import Assembly, with_method
from sidestep.measure.flops import flops_per_sample
from sidestep.measure.memory import step_peak_mb
from sidestep.measure.timing import by_key, interleaved, quartiles, ratios

BASELINES = ("backprop", "backprop_checkpointed")


def cost(assembly: Assembly) -> dict[str, object]:
    """Peak activations of a step in MB of 2**20 bytes, parameters, and FLOPs per sample.

    FLOPs of a training step, of what inference runs, of every read-out, and of the network without what was added.

    Takes real steps: measure a copy (`with_method`) of a network that is still needed.
    """
    engine, batch = assembly.engine, assembly.batches(0)
    modules = [module for _, module in assembly.chain.parts()]
    peak = step_peak_mb(lambda: engine.step(batch), modules, assembly.device)
    size = len(batch[0])
    training = flops_per_sample(lambda: engine.step(batch), size)
    exported = assembly.method.export(engine.inference_chain).eval()
    network = assembly.model.eval()
    params, aux_params = assembly.parameter_counts()
    return {
        "peak_activation_mb": peak,
        "flops_per_sample": training,
        "inference_flops_per_sample": flops_per_sample(lambda: exported(batch[0]), size),
        "readouts_flops_per_sample": flops_per_sample(lambda: engine.predict(batch[0]), size),
        "network_flops_per_sample": flops_per_sample(lambda: network(batch[0]), size),
        "params": params,
        "aux_params": aux_params,
    }


def costs(assembly: Assembly, rounds: int = 5) -> list[dict[str, object]]:
    """The method's costs beside backprop's and checkpointed backprop's on the same network, timed in turn."""
    return cost_rows(
        {name: with_method(assembly, name) for name in dict.fromkeys([assembly.config.method, *BASELINES])}, rounds
    )


def cost_rows(fresh: Mapping[str, Assembly], rounds: int = 5) -> list[dict[str, object]]:
    """One row a method, on networks that nobody needs any more; `backprop` must be among them."""
    steps = {name: partial(a.engine.step, a.batches(0)) for name, a in fresh.items()}
    samples = interleaved(steps, rounds=rounds, warmup=2, device=fresh["backprop"].device)
    rows: list[dict[str, object]] = []
    for name, a in fresh.items():
        rows.append(
            {
                "method": name,
                "blocks": a.config.blocks,
                **by_key("step_ms", quartiles(samples[name])),
                **by_key("ratio_to_backprop", ratios(samples, name, "backprop")),
                **cost(a),
            }
        )
    return rows
