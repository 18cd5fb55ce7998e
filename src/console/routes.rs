//! Routes, and the checks that every request passes first.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::time::timeout;

use super::pages::Page;
use super::params::Params;
use super::security::{Access, User, protect};
use super::view::View;
use super::{Shared, actions, assets, layout, live};

/// Maximum size of a form. The largest parameter is the reason of a parked event.
const FORM_BYTES_MAX: usize = 16 << 10;

/// Time limit for the body of a form.
const FORM_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/console", get(overview))
        .route("/console/", get(overview))
        .route("/console/live", get(stream))
        .route("/console/confirm", get(confirm))
        .route("/console/act", post(act))
        .route("/console/{name}", get(named))
        .layer(from_fn_with_state(shared.clone(), guarded))
        .with_state(shared)
}

/// Refuses requests that are not allowed, and adds the security headers to every response.
async fn guarded(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let mut admitted = shared.access.admit(headers);
    if request.method() == axum::http::Method::POST && admitted.is_ok() {
        admitted = Access::require_same_origin(headers).and(admitted);
    }
    let mut response = match admitted {
        Ok(user) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(denial) => {
            tracing::debug!(
                ?denial,
                path = request.uri().path(),
                "the console refuses a request"
            );
            denial.response().await
        }
    };
    protect(response.headers_mut());
    response
}

async fn overview(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shown(view(shared, Page::Overview, &request)).await
}

/// Responds with a page or an embedded file.
async fn named(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    if let Some(asset) = assets::find(&name) {
        return asset.response(&request);
    }
    match Page::of_slug(&name) {
        Some(page) => shown(view(shared, page, &request)).await,
        None => no_such_page(),
    }
}

fn no_such_page() -> Response {
    (StatusCode::NOT_FOUND, "The console has no such page.\n").into_response()
}

fn view(shared: Arc<Shared>, page: Page, request: &Request) -> Option<View> {
    View::new(shared, user(request), page, params(request))
}

async fn shown(view: Option<View>) -> Response {
    let Some(view) = view else {
        return no_such_database();
    };
    let content = view.page.content(&view).await;
    layout::page(&view, &content).into_response()
}

/// Responds to a parameter `db` that names no database.
pub(super) fn no_such_database() -> Response {
    let text = "The console has no database of this number. Open /console for the list.\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

async fn stream(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let params = params(&request);
    let page = params
        .get("page")
        .map_or(Some(Page::Overview), Page::of_slug);
    let known = request
        .headers()
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .or(params.get("version"))
        .map(str::to_owned);
    // Other pages have no stream: each update of theirs would cost too much.
    let Some(page) = page.filter(|page| page.is_live(&params)) else {
        return no_such_page();
    };
    match View::new(shared, user(&request), page, params) {
        Some(view) => live::response(view, known),
        None => no_such_database(),
    }
}

async fn confirm(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (user, params) = (user(&request), params(&request));
    actions::confirm(shared, user, params).await
}

async fn act(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let user = user(&request);
    let body = axum::body::to_bytes(request.into_body(), FORM_BYTES_MAX);
    let Ok(Ok(body)) = timeout(FORM_TIMEOUT, body).await else {
        return (
            StatusCode::BAD_REQUEST,
            "The form is too large or too slow.\n",
        )
            .into_response();
    };
    let params = Params::parse(&String::from_utf8_lossy(&body));
    actions::act(shared, user, params).await
}

fn params(request: &Request) -> Params {
    Params::parse(request.uri().query().unwrap_or_default())
}

fn user(request: &Request) -> User {
    request
        .extensions()
        .get::<User>()
        .cloned()
        .expect("the guard has admitted the request")
}
