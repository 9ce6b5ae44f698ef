"""Ten held-out sentences, translated by `monograph run` with the model of examples/recipes/translate.toml."""

from __future__ import annotations

from recipes import ALL, said, served, trained
from report import Row, parser, publish

COUNT = 10


def main() -> None:
    given = parser(__doc__).parse_args()
    recipe = next(r for r in ALL if r.name == "translate")
    metrics = trained(recipe)["metrics"]
    lines = (recipe.folder / "translations.tsv").read_text(encoding="utf-8").splitlines()[1 : COUNT + 1]
    fields = [line.split("\t") for line in lines]
    found = said(recipe, served(recipe)[1], [f[0] for f in fields])
    rows: list[Row] = []
    for (source, reference, _), hypothesis in zip(fields, found, strict=True):
        row = {"English": source, "reference": reference, "translation": hypothesis}
        rows.append({k: v.replace("|", "/") for k, v in row.items()})
    note = f"Of all {metrics['translated']:.0f} translated: BLEU {metrics['bleu']:.1f}, chrF {metrics['chrf']:.1f}."
    publish("translations", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
