"""What datatrove reads of an export: FOLDER of it."""

import json
import sys
from pathlib import Path

from datatrove.io import get_datafolder
from datatrove.pipeline.tokens.merger import get_data_reader, load_doc_ends
from datatrove.utils.dataset import DatatroveFileDataset, DatatroveFolderDataset


def read_pool(folder: Path, seq_len: int) -> dict[str, object]:
    files = sorted(folder.glob("*.ds"))
    tokenizer, size = (folder / f"{files[0].name}.metadata").read_text().splitlines()[0].split("|")
    dataset = DatatroveFolderDataset(str(folder), seq_len, token_size=int(size), return_positions=True)
    items = [dataset[number] for number in range(len(dataset))]
    by_file = [DatatroveFileDataset(str(path), seq_len, token_size=int(size)) for path in files]
    data = get_datafolder(str(folder))
    masks = []
    for path in data.list_files(glob_pattern="*.ds.loss"):
        ends = load_doc_ends(data.open(path.removesuffix(".loss") + ".index", "rb"))
        masks += [value for document in get_data_reader(data.open(path, "rb"), ends) for value in document]
    return {
        "windows": [item["input_ids"].tolist() for item in items],
        "positions": [item["positions"].tolist() for item in items],
        "windows_by_file": [len(file) for file in by_file],
        "ends_by_file": [load_doc_ends(data.open(f"{path.name}.index", "rb")).tolist() for path in files],
        "mask": masks,
        "tokenizer": tokenizer,
        "token_size": int(size),
    }


if __name__ == "__main__":
    root = Path(sys.argv[1])
    nanoset = json.loads((root / "nanoset.json").read_text())
    folders = dict.fromkeys(nanoset["dataset"]["dataset_folder"])
    print(json.dumps({Path(folder).name: read_pool(Path(folder), nanoset["tokens"]["sequence_length"]) for folder in folders}))
