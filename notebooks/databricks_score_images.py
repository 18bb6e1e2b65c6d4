# Databricks notebook source
# MAGIC %md
# MAGIC # Score a table of images
# MAGIC
# MAGIC This notebook needs a cluster in dedicated access mode with a GPU ML runtime; its policy is
# MAGIC `conf/databricks-policy.json`. The wheel (`python -m build --wheel`) and the weights are in a volume, so no
# MAGIC model is downloaded.

# COMMAND ----------

# MAGIC %pip install /Volumes/main/default/spark_aesthetic/spark_aesthetic-0.1.0-py3-none-any.whl
# MAGIC %pip install "open_clip_torch>=3.0" "pillow>=11.3" jinja2

# COMMAND ----------

# MAGIC %restart_python

# COMMAND ----------

source = "main.default.photos"
key = ["id"]
image_col = "content"
scores = "main.default.photo_scores"
view = "main.default.scored_photos"
volume = "/Volumes/main/default/spark_aesthetic"
predictor = "laion-aesthetics-v2"

# COMMAND ----------

# MAGIC %md
# MAGIC This cell scores only new rows, chunk by chunk. If you run it again after an interruption, it continues. If no
# MAGIC row is new, it scores nothing.

# COMMAND ----------

import spark_aesthetic as sa

done = sa.score_table(
    spark,
    source=source,
    key=key,
    image_col=image_col,
    scores=scores,
    view=view,
    predictor=predictor,
    model_path=f"{volume}/weights" if not predictor.startswith("untrained-") else None,
    checkpoint=f"{volume}/checkpoints",
)
print(done)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Show images by score

# COMMAND ----------

sa.display(spark.table(view), image_col, "aesthetic_score")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Which run scored what

# COMMAND ----------

sa.history(spark, scores).show()
