"""Which impression belongs to these findings? Retrieval among the 1,289 distinct impressions of
abnormal Indiana reports by TF-IDF, by MiniLM as it comes, and by MiniLM trained on report pairs.

    python data/download.py indiana-reports,minilm
    python benchmarks/indiana_text.py [--seeds 0,1,2] [--keep FOLDER]

A report is abnormal when its major MeSH term is not `normal`. Equal impressions are one candidate,
the query is the findings of the first report that has it. The trained tower is cross-fitted: the
impressions are dealt into five folds, and the model that encodes a fold's findings and all
candidates has seen neither those findings nor those impressions, in no report. Candidates of the
other folds it has seen; the second table therefore leaves them out. Rate, length and temperature
were set beforehand and never tuned. --keep holds what is done, to go on after an interruption.
"""

import argparse
import csv
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pairs import console, sized  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from vilmedic_ssl.data.auditing.texts import spelled  # noqa: E402
from vilmedic_ssl.data.reports import clean  # noqa: E402
from vilmedic_ssl.data.tokenizers import load_tokenizer  # noqa: E402
from vilmedic_ssl.losses.pairs import info_nce  # noqa: E402
from vilmedic_ssl.metrics import resample  # noqa: E402
from vilmedic_ssl.metrics.retrieval import pair_ranks  # noqa: E402
from vilmedic_ssl.nets.text import TextEncoder, pooled  # noqa: E402

FOLDS, KS = 5, (1, 10)
BATCH, STEPS, RATE, TAU, WARMUP = *sized((64, 84), (4, 2)), 2e-4, 0.05, sized(8, 1)
LONGEST = {"train": 64, "test": 128}  # tokens
Report = dict[str, str]


class Tower:
    """Mean-pooled MiniLM; the upper half of its layers learns."""

    def __init__(self, folder: str):
        self.tokenizer = load_tokenizer(folder)
        self.net = TextEncoder(proto=folder, pool="mean", freeze_layers=3)

    def __call__(self, texts: list[str], longest: int) -> Tensor:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        mask_BL = tokens["attention_mask"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.net.training):
            return pooled(self.net(tokens["input_ids"], mask_BL), mask_BL, "mean").float()

    @torch.no_grad()
    def rows(self, texts: list[str]) -> np.ndarray:
        """Unit rows, (N, D); texts of like length are encoded together."""
        self.net.eval()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = [self([texts[i] for i in order[b : b + 64]], LONGEST["test"]) for b in
               range(0, len(order), 64)]  # fmt: skip
        back = np.argsort(order)
        return nn.functional.normalize(torch.cat(out), dim=1).numpy()[back]

    def fit(self, pairs: list[Report], rate: float, seed: int) -> None:
        """Pull the findings and the impression of a report together."""
        torch.manual_seed(seed)
        self.net.train()
        weights = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda i: min((i + 1) / WARMUP, (STEPS - i) / (STEPS - WARMUP))
        )
        order: list[int] = []
        for _ in range(STEPS):
            if len(order) < BATCH:
                order = torch.randperm(len(pairs)).tolist()
            chosen, order = [pairs[i] for i in order[:BATCH]], order[BATCH:]
            findings, impressions = (
                self([clean(pair[key]) for pair in chosen], LONGEST["train"])
                for key in ("findings", "impression")
            )
            loss = info_nce(findings, impressions, tau=TAU, positives=alike(chosen))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()


def alike(reports: list[Report]) -> Tensor:
    """(B, B) bool: equal findings or equal impressions."""
    names = {key: [spelled(r[key]) for r in reports] for key in ("findings", "impression")}
    return torch.tensor([[any(n[i] == n[j] for n in names.values()) for j in range(len(reports))]
                         for i in range(len(reports))])  # fmt: skip


def read(folder: Path) -> tuple[list[Report], list[Report]]:
    """All reports with findings and impression, and the first one of every abnormal impression."""
    with (folder / "reports.csv").open(encoding="utf-8", newline="") as file:
        both = [row for row in csv.DictReader(file) if row["findings"] and row["impression"]]
    first: dict[str, Report] = {}
    for row in both:
        if row["normal"] != "1":
            first.setdefault(row["impression"], row)
    return both, list(first.values())


def without(reports: list[Report], unseen: list[Report]) -> list[Report]:
    """The reports that share neither findings nor impression with the unseen ones."""
    hidden = {key: {spelled(r[key]) for r in unseen} for key in ("findings", "impression")}
    return [r for r in reports if all(spelled(r[key]) not in hidden[key] for key in hidden)]


def tf_idf(both: list[Report], queries: list[Report]) -> np.ndarray:
    """(Q, Q) cosines of findings with impressions; words and pairs of words that occur twice."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    corpus = [r[key] for key in ("findings", "impression") for r in both]
    model = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2).fit(corpus)
    left, right = (model.transform([r[k] for r in queries]) for k in ("findings", "impression"))
    return (left @ right.T).toarray()


def cosines(tower: Tower, queries: list[Report], candidates: list[Report]) -> np.ndarray:
    texts = [clean(r["findings"]) for r in queries], [clean(r["impression"]) for r in candidates]
    return tower.rows(texts[0]) @ tower.rows(texts[1]).T


def cross_fitted(
    minilm: str, both: list[Report], queries: list[Report], fold_Q: np.ndarray, seed: int, keep: str
) -> np.ndarray:
    """(Q, Q) cosines, every row from the model that has not seen it."""
    out = np.zeros((len(queries), len(queries)))
    for fold in range(FOLDS):
        held = np.flatnonzero(fold_Q == fold)
        kept = Path(keep) / f"{seed}-{fold}.npy" if keep else None
        if kept and kept.is_file():
            out[held] = np.load(kept)
            continue
        begin, tower, test = time.process_time(), Tower(minilm), [queries[i] for i in held]
        pairs = without(both, test)
        tower.fit(pairs, RATE, seed)
        out[held] = cosines(tower, test, queries)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, out[held])
        minutes = (time.process_time() - begin) / 60
        console.say(f"  seed {seed}, fold {fold}: {len(pairs)} reports, {minutes:.1f} CPU minutes")
    return out


def ranks(cosines_QQ: np.ndarray, fold_Q: np.ndarray, alone: bool) -> np.ndarray:
    """Rank of every query's impression among all, or among those of its fold alone."""
    if not alone:
        return pair_ranks(cosines_QQ, np.arange(len(fold_Q)))[0]
    out = np.zeros(len(fold_Q))
    for fold in range(FOLDS):
        held = np.flatnonzero(fold_Q == fold)
        out[held] = pair_ranks(cosines_QQ[np.ix_(held, held)], np.arange(len(held)))[0]
    return out


def table(found: dict[str, list[np.ndarray]], fold_Q: np.ndarray, alone: bool) -> None:
    """Recalls with intervals over reports, and the paired difference to TF-IDF."""
    hits = {
        name: np.mean([ranks(c, fold_Q, alone)[:, None] <= np.array(KS) for c in several], axis=0)
        for name, several in found.items()
    }
    for name, hit_QK in hits.items():
        draws = resample(lambda a, b: np.r_[a.mean(0), (a - b).mean(0)], hit_QK, hits["TF-IDF"])
        low, high = draws.interval()
        cells = [f"{draws.value[i]:.3f} [{low[i]:.3f}, {high[i]:.3f}]" for i in range(2 * len(KS))]
        text = ", ".join(f"R@{k} {cell}" for k, cell in zip(KS, cells, strict=False))
        console.say(f"  {name}: {text}; over TF-IDF {', '.join(cells[len(KS) :])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--reports", type=Path, default=Path("data/indiana-reports"))
    parser.add_argument("--minilm", default="data/minilm")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--keep", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    both, queries = read(given.reports)
    fold_Q = np.random.default_rng(0).permutation(len(queries)) % FOLDS
    console.say(f"{len(both)} reports with findings and impression; {len(queries)} candidates")
    found = {"TF-IDF": [tf_idf(both, queries)]}
    found["MiniLM, frozen"] = [cosines(Tower(given.minilm), queries, queries)]
    if given.seeds:
        found["MiniLM, trained"] = [
            cross_fitted(given.minilm, both, queries, fold_Q, int(seed), given.keep)
            for seed in given.seeds.split(",")
        ]
    console.say(f"among all {len(queries)} impressions:")
    table(found, fold_Q, alone=False)
    console.say(f"among the {len(queries) // FOLDS} of the own fold, none of them seen:")
    table(found, fold_Q, alone=True)


if __name__ == "__main__":
    main()
