"""The checks: what each proves. The code is elsewhere; who needs it says chips/verdict.py.

The order is that of running: what everything else stands on comes first.
"""

from interlock.qualify.check import Check, Level

_ALL = [
    Check(
        id="versions",
        function="interlock.qualify.software:versions",
        classes=(10,),
        proves="driver, runtime, torch and its plugin belong together",
        remedy="install the plugin made for this torch, and the runtime that plugin names",
    ),
    Check(
        id="operators",
        function="interlock.qualify.software:generation_operators",
        classes=(9,),
        proves="every operator of generation is there; those that run on the host are named",
        remedy="upgrade the plugin, or wait for the operator",
    ),
    Check(
        id="training-operators",
        function="interlock.qualify.software:training_operators",
        classes=(9,),
        proves="every operator of the learner is there, and none runs on the host in secret",
        remedy="train elsewhere; upgrade the plugin, or wait for the operator",
        strict=True,
    ),
    Check(
        id="forward",
        function="interlock.qualify.numerics:forward",
        classes=(1, 3),
        proves="operators give the right numbers at the shapes of language models",
        remedy="do not use it; send the failed cases to the vendor",
    ),
    Check(
        id="products",
        function="interlock.qualify.numerics:products",
        classes=(1, 2),
        proves="products are right in the layouts that gradients have",
        remedy="do not use it; send the failed cases to the vendor",
    ),
    Check(
        id="opinfo",
        function="interlock.qualify.opinfo:sample",
        classes=(1,),
        proves="a sample of torch's own operator tests passes",
        remedy="do not use it; send the failed cases to the vendor",
    ),
    Check(
        id="backward",
        function="interlock.qualify.numerics:backward",
        classes=(2,),
        proves="gradients are right at the shapes of language models",
        remedy="train elsewhere; send the failed cases to the vendor",
    ),
    Check(
        id="training",
        function="interlock.qualify.training:band",
        classes=(3,),
        proves="a small model learns as it does on the reference, seed for seed",
        remedy="train elsewhere; compare an optimizer step with interlock parity",
    ),
    Check(
        id="optimizer",
        function="interlock.qualify.optimizer:updates",
        classes=(3,),
        proves="an optimizer step reaches every element of parameters as large as models have",
        remedy="train elsewhere; send the failed cases to the vendor",
    ),
    Check(
        id="learner-parity",
        function="interlock.qualify.agreement:learner_parity",
        classes=(4,),
        proves="the learner gives the log-probabilities of the reference, before and after updates",
        remedy="train elsewhere",
    ),
    Check(
        id="engine-parity",
        function="interlock.qualify.agreement:engine_parity",
        classes=(4,),
        proves="the engine gives the log-probabilities of the reference, before and after updates",
        remedy="do not use it; find the layer with interlock parity --bisect",
    ),
    Check(
        id="stale-weights",
        function="interlock.qualify.agreement:stale_weights",
        classes=(5,),
        proves="decoding uses the weights that were loaded last",
        remedy="do not use it: it would generate with weights of the past",
    ),
    Check(
        id="random",
        function="interlock.qualify.random_numbers:drawn",
        classes=(1, 11),
        proves="the device's own random numbers are spread as they should be, and do not repeat",
        remedy="do not use it with software that draws on the device, as vLLM does",
    ),
    Check(
        id="sampler",
        function="interlock.qualify.sampling:distribution",
        classes=(1, 11),
        proves="tokens are drawn as often as their probabilities say",
        remedy="do not use it",
    ),
    Check(
        id="batch-invariance",
        function="interlock.qualify.sampling:invariance",
        classes=(11,),
        proves="an answer does not depend on what else is in the batch, beyond rounding",
        remedy="do not use it",
    ),
    Check(
        id="collectives",
        function="interlock.qualify.collectives:exact",
        classes=(6,),
        proves="collectives end, and add up exactly",
        remedy="train on one device, or on others; check the links",
        deadline_s={Level.QUICK: 300, Level.DEFAULT: 900, Level.SOAK: 900},  # 120 for one case
    ),
    Check(
        id="determinism",
        function="interlock.qualify.endurance:determinism",
        classes=(7, 11),
        proves="the same computation gives the same bits, on which exact resume stands",
        remedy="train elsewhere, or switch the vendor's deterministic mode on and qualify that",
    ),
    Check(
        id="addresses",
        function="interlock.qualify.addresses:reached",
        classes=(1, 8),
        proves="what lies beyond 2^31 elements of a tensor is written and read as the rest",
        remedy="do not use it; send the failed cases to the vendor",
    ),
    Check(
        id="memory",
        function="interlock.qualify.endurance:memory",
        classes=(8,),
        proves="memory that is given back can be had again",
        remedy="do not use it for long runs; upgrade the driver",
    ),
    Check(
        id="speed",
        function="interlock.qualify.speed:roofline",
        classes=(9,),
        proves="no operator is far below what the device's own products and copies reach",
        remedy="look for a fallback to the host in the slow operators",
    ),
    Check(
        id="soak",
        function="interlock.qualify.soak:soak",
        classes=(7,),
        proves="it keeps computing the same under load: no crash, no flipped bit",
        remedy="take the chip out; a crash code says whether hardware, link or software",
    ),
]

CHECKS: dict[str, Check] = {check.id: check for check in _ALL}
