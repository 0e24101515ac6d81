"""The arguments of ``fit`` and ``predict``."""

import argparse

from ..training.arguments import count, not_negative, number, positive, seed, width

FIT = """\
Fit a network that sizes itself to a table: a CSV file with one row per example. Regression or classification is found from the
target's cells; missing values (empty, NA, N/A, NaN, null, ?) are filled in, texts become categories, numbers are standardised.
"""
FIT_END = """\
written to OUT:
  plain.pt2     all of it as a torch.export program, from columns to numbers or probabilities; loads without this package
  summary.json  columns, classes, score on the rows held out, lambdas tried, sizes, parameters, arguments and versions
  fit.png       features per layer and the loss over the steps of the last run
Each is replaced in one piece, the summary last. Then: python -m shrinknets_fast predict OUT rows.csv
Bad input: one line with row and column, status 2, and nothing is written. Row 1 is the first of the file.
"""
PREDICT = """\
Print a prediction for each row of a CSV file, one per line: a class, or a number (several targets: with commas between them).
Columns are found by the names in the header, others are ignored; without a header by their order, with or without the targets.
"""


def lam(text):
    return text if text == "auto" else not_negative(text)


def delimiter(text):
    if text == "\\t":
        return "\t"
    if len(text) != 1 or text in '"\r\n \0':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character")
    return text


def add_reading(add):
    add("--delimiter", type=delimiter, metavar="CHARACTER", help="default: found among , ; | and tab")
    add("--header", default="auto", choices=("auto", "yes", "no"), help="whether row 1 has names; default: found")
    add("--encoding", default="utf-8-sig", help="default: utf-8")


def add_fit(parser):
    add = parser.add_argument
    add("data", metavar="data.csv", help="- is the standard input")
    add(
        "--target", nargs="+", required=True, metavar="COLUMN", help="names, or numbers from 1 where there is no header"
    )
    add("--task", choices=("regression", "classification"), help="default: found from the target's cells")
    add("--exclude", nargs="+", default=[], metavar="COLUMN", help="columns to leave out")
    add("--category", nargs="+", default=[], metavar="COLUMN", help="columns whose numbers are names, as postcodes are")
    add("--decimal", default=".", choices=(".", ","), help="default: .")
    add_reading(add)
    add("--hidden", nargs="+", type=width, default=[256], metavar="UNITS", help="widths at the start; default: 256")
    add("--lam", type=lam, default="auto", help="weight of the penalty; default: auto, a short search")
    add("--epochs", type=count, help="default: that of ShrinkClassifier")
    add("--batch-size", type=count, help="default: a 20th of the rows, from 16 to 256")
    add("--lr", type=positive, default=3e-3, help="default: 3e-3")
    add("--filter-lr", type=not_negative, default=1e-2, help="default: 1e-2")
    share = number(float, 0.01, 0.91, "a number from 0.01 to 0.9")
    add("--test-share", type=share, default=0.2, help="rows that are held out for the score; default: 0.2")
    add("--seed", type=seed_of_sklearn, default=0, help="default: 0")
    add("--out", help="folder for the results; default: runs/NAME for NAME.csv")


def seed_of_sklearn(text):
    if seed(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to {2**32 - 1}")
    return int(text)


def add_predict(parser):
    parser.add_argument("folder", help="what fit wrote")
    parser.add_argument("rows", nargs="?", default="-", metavar="rows.csv", help="default: -, the standard input")
    add_reading(parser.add_argument)
