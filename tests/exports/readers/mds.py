"""What MosaicML's StreamingDataset makes of an export, and MDSWriter of the same samples; argument: the export's folder."""

import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path

import yaml

# The package's own start imports torchvision for its data sets of pictures, which loads only beside the build of torch it was made for.
_SPEC = importlib.util.find_spec("streaming")
_PACKAGE = types.ModuleType("streaming")
_PACKAGE.__path__ = list(_SPEC.submodule_search_locations)
sys.modules["streaming"] = _PACKAGE

from streaming.base import MDSWriter, Stream, StreamingDataset  # noqa: E402


def epoch(path: Path) -> list[dict]:
    """Samples of one epoch of a run, shuffled, as a training script would read them."""
    content = yaml.safe_load(path.read_text())
    streams = [Stream(**keywords) for keywords in content["streams"].values()]
    dataset = StreamingDataset(streams=streams, epoch_size=content.get("epoch_size"), shuffle=True, batch_size=1)
    return [as_json(sample) for sample in dataset]


def as_json(sample: dict) -> dict:
    return {name: value.tolist() for name, value in sample.items()}


def is_as_written_by_mds_writer(pool: Path) -> bool:
    """Whether MDSWriter makes the same files of a pool's samples."""
    index = json.loads((pool / "index.json").read_text())
    first = index["shards"][0]
    dataset = StreamingDataset(local=str(pool), batch_size=1)
    with tempfile.TemporaryDirectory() as out:
        columns = dict(zip(first["column_names"], first["column_encodings"], strict=True))
        with MDSWriter(columns=columns, out=out, hashes=first["hashes"], size_limit=first["size_limit"]) as writer:
            for number in range(dataset.num_samples):
                writer.write(dataset[number])
        same_index = json.loads((Path(out) / "index.json").read_text()) == index
        names = sorted(path.name for path in Path(out).glob("*.mds"))
        same_names = names == sorted(path.name for path in pool.glob("*.mds"))
        return same_index and same_names and all((Path(out) / name).read_bytes() == (pool / name).read_bytes() for name in names)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    pools = [Path(stream["local"]) for stream in yaml.safe_load((folder / "streams.yaml").read_text())["streams"].values()]
    print(
        json.dumps(
            {
                "epoch": epoch(folder / "streams.yaml"),
                "by_proportion": epoch(folder / "streams-by-proportion.yaml"),
                "as_written": {pool.name: is_as_written_by_mds_writer(pool) for pool in pools},
            }
        )
    )
