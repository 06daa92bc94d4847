//! Pure: properties of claims against a model.
