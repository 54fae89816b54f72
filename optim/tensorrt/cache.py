"""Engine files: serialized TensorRT engines on disk, found by everything that they depend on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.files import write_atomic

FORMAT = 1  # of the files, and of what is compiled: raise it when a module that becomes an engine changes


@dataclass(frozen=True)
class SerializedEngine:
    """A TensorRT engine and how it is wired to the function that it replaces.

    Attributes:
        plan: the engine as TensorRT serialized it.
        input_names: of its inputs, in the order in which the runtime takes them.
        input_indices: for each input, which argument of the function it is.
        output_names: of its outputs, in the order in which the runtime returns them.
        output_indices: for each result of the function, which output it is.
        fp8_weights: number of weights that TensorRT was given with FP8 scales.
    """

    plan: bytes
    input_names: tuple[str, ...]
    input_indices: tuple[int, ...]
    output_names: tuple[str, ...]
    output_indices: tuple[int, ...]
    fp8_weights: int = 0


def cache_key(ingredients: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of what an engine depends on; plain JSON values only."""
    canonical = json.dumps({"format": FORMAT, **ingredients}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class EngineCache:
    """A folder of engines: `<key>.json` says what an engine is, and which `.engine` file holds it.

    Non-obvious behaviors:
        Several processes may build one engine at once, and builds differ in their bytes. So an engine file is
        named by its content, every file appears whole, and the JSON file comes last: it never names a file
        that is missing or another process's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, ingredients: Mapping[str, Any]) -> SerializedEngine | None:
        """Read the engine that was built from the same ingredients; None if there is none.

        Raises:
            RuntimeError: its files are damaged; names the file.
        """
        sidecar = self._sidecar(ingredients)
        if not sidecar.exists():
            return None
        try:
            facts = json.loads(sidecar.read_text())
            wiring = {
                name: tuple(facts[name])
                for name in ("input_names", "input_indices", "output_names", "output_indices")
            }
            fp8_weights = int(facts["fp8_weights"])
            plan_path = self.folder / facts["engine"]
            expected = facts["sha256"]
            same = facts["ingredients"] == json.loads(json.dumps({"format": FORMAT, **ingredients}))
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f"engine cache file {sidecar} is damaged ({type(error).__name__}: {error}); delete it"
            ) from error
        if not same:
            raise RuntimeError(f"engine cache file {sidecar} describes another engine; delete it")
        if not plan_path.is_file():
            raise RuntimeError(f"engine cache file {plan_path} is missing; delete {sidecar}")
        plan = plan_path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != expected:
            raise RuntimeError(
                f"engine cache file {plan_path} is damaged: its SHA-256 is not {expected}; "
                f"delete it and {sidecar}"
            )
        return SerializedEngine(plan, **wiring, fp8_weights=fp8_weights)

    def store(self, ingredients: Mapping[str, Any], engine: SerializedEngine) -> None:
        """Write an engine, unless another process wrote one in the meantime."""
        sidecar = self._sidecar(ingredients)
        if sidecar.exists():
            return
        facts = asdict(engine)
        sha256 = hashlib.sha256(facts.pop("plan")).hexdigest()
        name = f"{sidecar.stem}.{sha256[:16]}.engine"
        facts |= {
            "engine": name,
            "engine_bytes": len(engine.plan),
            "sha256": sha256,
            "ingredients": {"format": FORMAT, **ingredients},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / name, engine.plan, durable=True)
        write_atomic(sidecar, json.dumps(facts, indent=1), durable=True)

    def _sidecar(self, ingredients: Mapping[str, Any]) -> Path:
        return self.folder / f"{cache_key(ingredients)}.json"
