//! Where a load balancer would send a request: asked of each of its proxies.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use futures::future::join_all;
use lightbyte_api::explain::{Answer as ProxyAnswer, Explained, Question, Tested, TestedProxy};
use lightbyte_api::{Kind, ObjectRef, Uid};
use lightbyte_link::ClientError;
use lightbyte_plan::planner::loadbalancer::proxies;
use lightbyte_plan::request::Refusal;
use lightbyte_plan::{View, guest};

use crate::api::answer::{Answer, Answered};
use crate::api::guests::client;
use crate::api::input::{self, Input, Parameters};
use crate::problem::Failure;
use crate::{Server, chain};

/// How long a worker may take: it waits for the guest for two seconds, and a client waits for five.
const WORKER_WITHIN: Duration = Duration::from_secs(3);

/// `POST /v1/objects/loadbalancer/NAME/test`
pub(crate) async fn test(
    State(server): State<Arc<Server>>,
    path: Path<(String, String)>,
    parameters: Parameters,
    Input(question): Input<Question>,
) -> Answered<Tested> {
    parameters.only(&["min_revision"])?;
    let object = input::object(path)?;
    let view = server.view_for(&parameters).await?;
    view.asked(&object).ok_or_else(|| Refusal::NotFound { object: object.clone() })?;
    if object.kind != Kind::LoadBalancer {
        return Err(Refusal::NotForKind { object, verb: "tested" }.into());
    }
    // There are few: a load balancer has a limit.
    let asked = proxies(&view, &object).into_iter().map(|proxy| ask(&view, proxy, &question));
    Ok(Answer::at(view.revision(), Tested { proxies: join_all(asked).await }))
}

async fn ask(view: &View, proxy: ObjectRef, question: &Question) -> TestedProxy {
    let tested = |explained, problem| TestedProxy { vm: proxy.name.clone(), explained, problem };
    match explained(view, &proxy, question).await {
        Ok(explained) => tested(Some(explained), None),
        Err(problem) => tested(None, Some(problem)),
    }
}

async fn explained(view: &View, proxy: &ObjectRef, question: &Question) -> Result<Explained, String> {
    let way = guest::way_to(view, proxy).map_err(|refusal| refusal.to_string())?;
    let worker = client(&way).map_err(|Failure(problem)| problem.title)?.within(WORKER_WITHIN);
    let answer = worker.post::<_, Explained>(&format!("/v1/vms/{}/explain", way.vm), question).await;
    let mut explained = answer.map(|answer| answer.value).map_err(|error| match error {
        ClientError::Refused(problem) => problem.title,
        error => format!("worker `{}` does not answer: {}", way.worker, chain(&error)),
    })?;
    if let ProxyAnswer::Forwards { pools, .. } = &mut explained.answer {
        for backend in pools.iter_mut().flat_map(|pool| &mut pool.backends) {
            let vm = backend.uid.parse::<Uid>().ok().and_then(|uid| view.object_of(uid));
            backend.vm = vm.filter(|vm| vm.kind == Kind::Vm).map(|vm| vm.name.clone());
        }
    }
    Ok(explained)
}
