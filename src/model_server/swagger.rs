//! The OpenAPI description of the server, in the three versions that Azure's server has.

use serde_json::{Value, json};

use super::linear_model::FEATURE_COUNT;

/// Returns the document for `version` (`2`, `3` or `3.1`); `None` if there is no such version.
pub(super) fn swagger_document(version: &str, title: &str, stream: bool) -> Option<Value> {
    match version {
        "2" => Some(swagger_2(title, stream)),
        "3" => Some(openapi_3("3.0.3", title, stream)),
        "3.1" => Some(openapi_3("3.1.0", title, stream)),
        _ => None,
    }
}

fn swagger_2(title: &str, stream: bool) -> Value {
    let answer = |description: &str, schema: &str| {
        let reference = format!("#/definitions/{schema}");
        json!({"description": description, "schema": {"$ref": reference}})
    };
    let data = json!({
        "name": "data", "in": "query", "required": true, "type": "string", "description": query_description(),
    });
    let payload = json!({
        "name": "serviceInputPayload", "in": "body", "required": true, "schema": {"$ref": "#/definitions/ServiceInput"},
    });
    let responses = json!({
        "200": answer("A prediction for each row", "ServiceOutput"),
        "default": answer("What went wrong", "ErrorResponse"),
    });
    json!({
        "swagger": "2.0",
        "info": info(title),
        "schemes": ["http"],
        "paths": {
            "/": {"get": {
                "operationId": "ServiceHealthCheck",
                "produces": ["text/plain"],
                "responses": {"200": {"description": "Healthy", "schema": {"type": "string"}}},
            }},
            "/score": {
                "get": {
                    "operationId": "RunMLServiceQuery",
                    "parameters": [data],
                    "produces": ["application/json"],
                    "responses": responses,
                },
                "post": {
                    "operationId": "RunMLService",
                    "consumes": ["application/json"],
                    "produces": [media_type(stream), "application/json"],
                    "parameters": [payload],
                    "responses": responses,
                },
            },
        },
        "definitions": schemas(),
    })
}

fn openapi_3(openapi: &str, title: &str, stream: bool) -> Value {
    let text = json!({"type": "string"});
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let answer = |description: &str, media_type: &str, schema: Value| {
        let content = json!({media_type: {"schema": schema}});
        json!({"description": description, "content": content})
    };
    let failure = answer("What went wrong", "application/json", schema("ErrorResponse"));
    let whole = answer("A prediction for each row", "application/json", schema("ServiceOutput"));
    let streamed = answer("An event for each row, then [DONE]", media_type(true), text.clone());
    let health = answer("Healthy", "text/plain", text.clone());
    let body = json!({"required": true, "content": {"application/json": {"schema": schema("ServiceInput")}}});
    let data = json!({
        "name": "data", "in": "query", "required": true, "schema": text, "description": query_description(),
    });
    json!({
        "openapi": openapi,
        "info": info(title),
        "paths": {
            "/": {"get": {"operationId": "ServiceHealthCheck", "responses": {"200": health}}},
            "/score": {
                "get": {
                    "operationId": "RunMLServiceQuery",
                    "parameters": [data],
                    "responses": {"200": whole, "default": failure},
                },
                "post": {
                    "operationId": "RunMLService",
                    "requestBody": body,
                    "responses": {"200": if stream { &streamed } else { &whole }, "default": failure},
                },
            },
        },
        "components": {"schemas": schemas()},
    })
}

fn info(title: &str) -> Value {
    json!({
        "title": title,
        "version": env!("CARGO_PKG_VERSION"),
        "description": "Linear regression on the scikit-learn diabetes data, by inference-router's sample model server",
    })
}

fn schemas() -> Value {
    let row =
        json!({"type": "array", "items": {"type": "number"}, "minItems": FEATURE_COUNT, "maxItems": FEATURE_COUNT});
    json!({
        "ServiceInput": {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "array", "items": row, "minItems": 1}},
            "example": {"data": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]]},
        },
        "ServiceOutput": {
            "type": "array",
            "items": {"type": "number"},
            "example": [11055.977245525679, 4503.079536107787],
        },
        "ErrorResponse": {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}},
    })
}

fn media_type(stream: bool) -> &'static str {
    if stream { "text/event-stream" } else { "application/json" }
}

fn query_description() -> String {
    format!("The rows as JSON, URL-encoded: [[{FEATURE_COUNT} numbers], ...]")
}
