"""The configuration of a run: frozen dataclasses whose nesting mirrors the modules they configure.

``Config.load`` reads a preset or a TOML file, dotted overrides (``optim.muon_lr=0.02``) change some values, and what
results is saved with the run. An unknown key, a missing key or a value of the wrong type is an error that names the
key.

Each field's meaning and range stand once, in its ``doc``; errors are made from there.
"""

from bytegolf.config.model import (
    BpeConfig,
    CapacityMode,
    ChunkHashConfig,
    CosineConfig,
    EntropyConfig,
    HNetConfig,
    ModelConfig,
    NetworkConfig,
    NgramConfig,
    RouterConfig,
    SoftConfig,
    StackConfig,
    WhitespaceConfig,
    check_fixed_capacity,
    levels,
    outer_dim,
    read_layout,
    stacks,
    write_layout,
)
from bytegolf.config.reading import (
    Ranged,
    doc,
    flatten,
    from_dict,
    options_of,
    preset_chain,
    preset_names,
    read_toml,
    to_dict,
)
from bytegolf.config.run import (
    Config,
    ContextName,
    DataConfig,
    EvalConfig,
    ExportConfig,
    MixConfig,
    OptimConfig,
    SelectorName,
    TrainConfig,
    TttConfig,
)

__all__ = [
    "BpeConfig",
    "CapacityMode",
    "ChunkHashConfig",
    "Config",
    "ContextName",
    "CosineConfig",
    "DataConfig",
    "EntropyConfig",
    "EvalConfig",
    "ExportConfig",
    "HNetConfig",
    "MixConfig",
    "ModelConfig",
    "NetworkConfig",
    "NgramConfig",
    "OptimConfig",
    "Ranged",
    "RouterConfig",
    "SelectorName",
    "SoftConfig",
    "StackConfig",
    "TrainConfig",
    "TttConfig",
    "WhitespaceConfig",
    "check_fixed_capacity",
    "doc",
    "flatten",
    "from_dict",
    "levels",
    "options_of",
    "outer_dim",
    "preset_chain",
    "preset_names",
    "read_layout",
    "read_toml",
    "stacks",
    "to_dict",
    "write_layout",
]
