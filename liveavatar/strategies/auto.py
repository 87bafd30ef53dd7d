"""Which ways to run there are on a topology, which of them fit, and which is fastest. Loads no torch.

Every way is laid out by the same stage tables and schedules that the run would use; what the runtime has no key for yet
is planned all the same, said to be missing, and never chosen.
It is long because each strategy has a list of ways of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from liveavatar.config import conf_dir
from liveavatar.memory.given import GB, ITEMS, Ask, Setup, Topology
from liveavatar.memory.plan import Plan, RankPlan, draw_up, smaller
from liveavatar.memory.sizes import Picture, picture
from liveavatar.memory.speed import Pace, pace
from liveavatar.sampling.lattice import Round, wavefront
from liveavatar.sampling.stages import StageTable, grid_table, layer_table, step_table, ticks

REFERENCE = "the reference's own way, for comparison"


@dataclass(frozen=True)
class Auto:
    """What `+strategy=auto` may use: `devices` ranks at most; null means fabric.devices, or every GPU where that is 1.

    Raises ValueError for a number that cannot be.
    """

    devices: int | None = None

    def __post_init__(self) -> None:
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"strategy.devices={self.devices} must be 1 or more, or null for all that there are")


@dataclass(frozen=True)
class Option:
    """One way to run, with what it needs and takes."""

    label: str
    plan: Plan
    pace: Pace
    excess: int  # bytes that the worst rank, or the host, has too few; 0 or less: it fits
    where: str

    @property
    def fits(self) -> bool:
        return self.excess <= 0

    @property
    def runs(self) -> bool:
        return self.fits and not self.plan.setup.missing

    @property
    def rank(self) -> RankPlan:
        return self.plan.ranks[self.plan.worst]


def weigh(label: str, ask: Ask, setup: Setup, topology: Topology) -> Option:
    """A setup on a topology: whether it fits, or what is missing where."""
    plan = draw_up(ask, setup)
    worst = plan.ranks[plan.worst]
    host_room = int(topology.host_gb * GB)
    if topology.accelerator == "cpu":  # devices and host are one memory
        excess = sum(rank.peak for rank in plan.ranks) + plan.host - int((topology.device_gb - topology.margin_gb) * GB)
        return Option(label, plan, pace(ask, plan, topology), excess, "memory of the machine")
    over = plan.host - host_room
    if over > 0 and worst.peak <= topology.room:
        return Option(label, plan, pace(ask, plan, topology), over, "host memory")
    where = f"rank {plan.worst}, {worst.peak_phase}"
    return Option(label, plan, pace(ask, plan, topology), worst.peak - topology.room, where)


def options(ask: Ask, topology: Topology) -> dict[str, list[Option]]:
    """All ways on all devices of a topology, strategy by strategy, each list in order of preference."""
    found: dict[str, list[Option]] = {}
    for label, setup in setups(ask, topology):
        if setup.strategy == "fsdp_stream" and setup.resident < 0:
            setup = most_resident(ask, setup, topology)
        found.setdefault(label, []).append(weigh(label, ask, setup, topology))
    return found


def best(ways: Iterable[Option]) -> Option:
    """The fastest that runs; else the fastest that would fit; else the one that lacks least."""
    ways = list(ways)
    running = [way for way in ways if way.runs] or [way for way in ways if way.fits]
    if running:
        return min(running, key=lambda way: round(way.pace.seconds, 3))
    return min(ways, key=lambda way: (bool(way.plan.setup.missing), way.excess))


def choose(found: Mapping[str, list[Option]]) -> list[Option]:
    """The best way of each strategy that runs here, fastest first; equals in the order of the strategies."""
    leading = [best(ways) for ways in found.values()]
    return sorted((way for way in leading if way.runs), key=lambda way: round(way.pace.seconds, 3))


def advice(label: str, ask: Ask, topology: Topology, found: Mapping[str, list[Option]], multiple: int) -> str:
    """The smallest change that would make a strategy fit: a setting, a smaller picture, or more room."""
    ways = found[label]
    fitting = [way for way in ways if way.fits]
    if fitting:
        way = best(fitting)
        return f"fits once {way.plan.setup.missing.removesuffix(' is not available yet')} is there"
    least = min(ways, key=lambda way: way.excess)
    for less in smaller(ask, multiple):
        if weigh(label, less, replace(least.plan.setup, resident=0), topology).fits:
            return f"request.size={less.picture} would fit{_typed(least.plan.setup)}"
    if least.where == "host memory":
        return f"{least.plan.host / GB:.0f} GB of host memory would do{_typed(least.plan.setup)}"
    need = topology.device_gb + least.excess / GB
    return f"devices of {need:.1f} GB would do{_typed(least.plan.setup)}"


def _typed(setup: Setup) -> str:
    return f" with {' '.join(setup.settings)}" if setup.settings else ""


def setups(ask: Ask, topology: Topology) -> Iterator[tuple[str, Setup]]:
    """Ways worth looking at, by label."""
    ranks, steps = topology.devices, ask.steps
    yield "single_device", Setup("single_device")
    if ranks > 1:
        yield from _pipelines(ask, ranks)
    yield from _streams(ask, ranks, steps)
    if ranks > 1 and topology.accelerator == "cuda":
        yield from _streams(ask, 1, steps)
    if ranks > 1 and ask.dit.heads % ranks == 0:
        yield from _shared(ask, ranks)
    if ranks > 1:
        for prefetch, settings in ((1, ()), (0, ("strategy.prefetch=0",))):
            yield "fsdp_full", Setup("fsdp_full", settings, ranks, "shards", prefetch=prefetch)
        yield "hsdp_offload", Setup("hsdp_offload", (), ranks, "shards", offload=True)
        stages = _rows(step_table(ranks, steps, ask.dit.layer_costs(), ranks == steps + 1))
        named = ("timestep_pipeline", (), ranks, "shards")
        yield "reference_tpp", Setup(*named, wrap="reference", stages=stages, missing=REFERENCE)


def _streams(ask: Ask, ranks: int, steps: int) -> Iterator[tuple[str, Setup]]:
    """fsdp_stream: from where weights come, where caches rest, how many cells share an arrival."""
    for source in ("peers", "host", "disk") if ranks > 1 else ("host", "disk"):
        for caches in ("device", "host"):
            for cells in sorted({1, min(2, steps), steps}):
                twice = _two_sinks(wavefront_rounds(ask, cells), steps - 1, ask.refresh)
                settings = [f"strategy.source={source}"]
                settings += [f"strategy.caches={caches}"] if caches == "host" else []
                settings += [f"strategy.cells_in_flight={cells}"] if cells > 1 else []
                yield (
                    "fsdp_stream",
                    Setup(
                        "fsdp_stream",
                        tuple(settings),
                        ranks,
                        source,
                        cells=cells,
                        resident=-1,
                        caches=caches,
                        second_sinks=frozenset(range(ranks)) if twice else frozenset(),
                    ),
                )


def _shared(ask: Ask, ranks: int) -> Iterator[tuple[str, Setup]]:
    """Ulysses: all ranks share each cell by sequence, and divide the heads of its caches."""
    shares = (f"parallel.ulysses_size={ranks}",)
    yield "replicated", Setup("replicated", shares, ranks, ulysses=ranks)
    for source in ("peers", "host"):
        for caches in ("device", "host"):
            settings = (f"strategy.source={source}", *(("strategy.caches=host",) if caches == "host" else ()), *shares)
            yield (
                "fsdp_stream",
                Setup("fsdp_stream", settings, ranks, source, resident=-1, caches=caches, ulysses=ranks),
            )
    yield "fsdp_full", Setup("fsdp_full", ("strategy.prefetch=0", *shares), ranks, "shards", prefetch=0, ulysses=ranks)
    yield "hsdp_offload", Setup("hsdp_offload", shares, ranks, "shards", offload=True, ulysses=ranks)


def _pipelines(ask: Ask, ranks: int) -> Iterator[tuple[str, Setup]]:
    """Both pipelines: decoded inline, with layers shifted away from the rank that decodes, or on a rank of its own.

    Between them lie grids: groups of ranks take steps, and cut the layers within a group.
    """
    costs = ask.dit.layer_costs()
    mean = sum(costs) / len(costs)
    for name, table_of in (("diagonal_pipeline", layer_table), ("timestep_pipeline", step_table)):
        yield name, _piped(ask, name, table_of(ranks, ask.steps, costs), ())
        for layers in (1, 2, 3, 4, 6):
            if name == "diagonal_pipeline" and ranks < ask.dit.layers:
                decode = layers * ask.steps  # a block's, which all of its cells share
                table = table_of(ranks, ask.steps, costs, False, decode * mean)
                yield name, _piped(ask, name, table, (f"strategy.decode_cost={decode}",))
        for groups in range(2, min(ranks, ask.steps + 1)) if name == "diagonal_pipeline" else ():
            grid = grid_table(ranks, ask.steps, costs, False, groups)
            yield name, _piped(ask, name, grid, (f"strategy.step_groups={groups}",))
            away = _piped(ask, name, grid, (f"strategy.step_groups={groups}", "strategy.caches=host"))
            yield name, replace(away, caches="host")
        if ranks > 2:
            yield name, _piped(ask, name, table_of(ranks, ask.steps, costs, True), ("parallel.decode=rank",))
        missing = "" if has_key(name, "caches") else "strategy.caches is not available yet"
        away = _piped(ask, name, table_of(ranks, ask.steps, costs), ("strategy.caches=host",))
        yield name, replace(away, caches="host", missing=missing)
        missing = "" if has_key(name, "source") else "strategy.source is not available yet"
        both = ("strategy.source=host", "strategy.caches=host")
        away = _piped(ask, name, table_of(ranks, ask.steps, costs), both)
        yield name, replace(away, source="host", caches="host", missing=missing)
    if ranks <= ask.steps:
        sharded = _piped(ask, name, step_table(ranks, ask.steps, costs), ("strategy.source=peers",))
        yield name, replace(sharded, source="peers")


def _piped(ask: Ask, name: str, table: StageTable, settings: tuple[str, ...]) -> Setup:
    twice = [
        rank
        for rank, stage in enumerate(table.stages)
        if stage.computes and _two_sinks(_rank_rounds(table, rank, ask.refresh), stage.steps[-1], ask.refresh)
    ]
    return Setup(
        name, settings, len(table.stages), stages=_rows(table), shows=table.shows, second_sinks=frozenset(twice)
    )


def _rows(table: StageTable) -> tuple[tuple[range, range], ...]:
    return tuple((stage.steps, stage.layers) for stage in table.stages)


def wavefront_rounds(ask: Ask, cells: int) -> Iterator[Round]:
    """The rounds of a stream up to some blocks after its sink is renewed."""
    return wavefront(0, ask.refresh + 4, ask.steps, cells, ask.refresh)


def _rank_rounds(table: StageTable, rank: int, refresh: int) -> Iterator[Round]:
    for tick in ticks(table, 0, refresh + 2, refresh):
        yield tuple(cell for worker, cell in tick if worker == rank)


def _two_sinks(rounds: Iterable[Round], last: int, refresh: int) -> bool:
    """Whether blocks with the old sink are still under way on a rank when the new one is prefilled."""
    under_way: set[int] = set()
    for cells in rounds:
        for block, _ in cells:
            if block == refresh and block not in under_way and under_way:
                return True
            under_way.add(block)
        under_way -= {block for block, step in cells if step == last}
    return False


def most_resident(ask: Ask, setup: Setup, topology: Topology) -> Setup:
    """As many blocks at rest on the device as fit beside everything else (0 where not even that fits)."""
    low, high = 0, ask.dit.layers
    room = topology.room if topology.accelerator == "cuda" else topology.room // setup.ranks
    while low < high:
        middle = (low + high + 1) // 2
        plan = draw_up(ask, replace(setup, resident=middle))
        needs = plan.peak + (plan.host if topology.accelerator == "cpu" else 0)
        low, high = (middle, high) if needs <= room else (low, middle - 1)
    settings = (*setup.settings, f"strategy.resident={low}") if low else setup.settings
    return replace(setup, resident=low, settings=settings)


@cache
def has_key(strategy: str, key: str) -> bool:
    """Whether the runtime's strategy takes that key."""
    from omegaconf import OmegaConf

    return key in OmegaConf.load(Path(conf_dir()) / "strategy" / f"{strategy}.yaml")


def _prepares(cfg: Any) -> bool:
    """Whether conditioning is prepared ahead, where a strategy can: a plan's own word, else that of the run."""
    if cfg.get("plan") is not None:
        return bool(cfg.plan.get("hoist", True))
    return (cfg.get("parallel") or {}).get("hoist", "auto") is not False


def setup_of(strategy: Any, ranks: int, cells: int, decode: str, ulysses: int) -> Setup:
    """The setup of a strategy object that has been arranged: what a plan of the run at hand starts from."""
    table = getattr(strategy, "table", None)
    source = getattr(strategy, "source", "shards" if hasattr(strategy, "wrap") else "device")
    if source == "auto":
        source = "peers" if ranks > 1 else "host"
    stages = () if table is None else _rows(table)
    return Setup(
        strategy.name,
        (),
        ranks,
        source,
        getattr(strategy, "slots", 2),
        cells,
        getattr(strategy, "resident", 0),
        getattr(strategy, "caches", "device"),
        getattr(strategy, "wrap", "units"),
        getattr(strategy, "prefetch", 1),
        getattr(strategy, "offloads", False),
        stages,
        0 if table is None else table.shows,
        1 if decode == "rank" else ulysses,
    )


def ask_of(cfg: Any, seen: Picture | None = None) -> Ask:
    """What a configuration asks for, of a picture already `seen` where there is one.

    Raises ValueError, naming the key, for what cannot be planned.
    """
    from omegaconf import OmegaConf

    model = OmegaConf.to_container(cfg.model, resolve=False)
    assert isinstance(model, dict)
    seen = seen or picture(cfg.request.size, cfg.model.size_multiple, cfg.rollout.cache_frames)
    told = cfg.get("plan") or {}
    precision, encoders = cfg.precision.dit, cfg.precision.encoders
    kinds = {
        "weights": told.get("weights") or cfg.precision.get("weights") or precision,
        "cache": told.get("cache") or cfg.precision.get("cache") or precision,
    }
    for key, value in (*kinds.items(), ("dit", precision), ("encoders", encoders)):
        if value not in ITEMS:
            name = f"plan.{key}" if key in kinds else f"precision.{key}"
            raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(ITEMS)}")
    if cfg.memory.text not in ("freed", "resident"):
        raise ValueError(f"memory.text={cfg.memory.text!r} is unknown; write freed or resident")
    if not isinstance(cfg.sampler.steps, int) or not 1 <= cfg.sampler.steps <= 8:
        raise ValueError(f"sampler.steps={cfg.sampler.steps}: a block is denoised in 1 to 8 steps")
    return Ask.of(
        {str(key): value for key, value in model.items()},
        seen,
        steps=cfg.sampler.steps,
        precision=precision,
        encoders=encoders,
        text=cfg.memory.text,
        hoisted=_prepares(cfg),
        refresh=cfg.rollout.frames_per_clip // 12,
        **kinds,
    )
