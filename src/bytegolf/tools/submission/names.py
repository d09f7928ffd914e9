"""What the files of a submission are called."""

CLAIMS = "submission.json"
LOG = "train.log"
README = "README.md"
