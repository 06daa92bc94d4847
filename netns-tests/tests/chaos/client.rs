//! Edge: an agent's worth of client: it joins, says that it lives, claims and ends, and writes down what
//! it asked and was told.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use limpet_api::book::{Attachment, AttachmentKey, EndReason};
use limpet_api::client::{Call, Client, ClientError, Method};
use limpet_api::host::{
    ClaimRequest, Claimed, EndRequest, Ended, Heartbeat, Session, SessionRequest, Wanted,
};
use limpet_api::{ErrorCode, Listing, paths};
use limpet_net_types::{Token, Uid};
use tokio::time::sleep;

use crate::Dice;
use crate::history::{History, Hold, Look};

/// How many containers an agent has at most.
const CONTAINERS: usize = 4;

/// A client and its book of what happened.
pub(crate) struct Agent {
    pub(crate) client: Client,
    pub(crate) number: usize,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) dice: Dice,
    pub(crate) until: Instant,
    /// A controller that did not answer may carry a claim out yet that another one has granted.
    pub(crate) is_unsure: bool,
}

/// What a container holds, or may hold.
struct Running {
    key: AttachmentKey,
    uid: Uid,
    place: usize,
}

impl Agent {
    /// Claims and ends until the time is over; then ends what is not known to be held.
    pub(crate) async fn run(mut self) {
        let mut session = self.join().await;
        let mut running: Vec<Option<Running>> = (0..CONTAINERS).map(|_| None).collect();
        let mut beat = Instant::now();
        while Instant::now() < self.until {
            if beat.elapsed() > Duration::from_secs(3) {
                beat = Instant::now();
                if self.beat(session).await.is_err() {
                    session = self.join().await;
                }
            }
            let container = self.dice.below(CONTAINERS);
            match running[container].take() {
                None => match self.claim(session, container).await {
                    Ok(held) => {
                        running[container] = held;
                        if std::mem::take(&mut self.is_unsure) {
                            session = self.join().await;
                        }
                    }
                    Err(unsure) => {
                        // Nothing of that session can be carried out any more.
                        session = self.join().await;
                        if let Some(unsure) = unsure {
                            session = self.end(session, &unsure).await;
                        }
                    }
                },
                Some(held) if self.dice.below(3) > 0 => session = self.end(session, &held).await,
                held => running[container] = held,
            }
            if self.dice.below(12) == 0 {
                self.look().await;
            }
            sleep(Duration::from_millis(u64::try_from(self.dice.below(40)).unwrap())).await;
        }
    }

    async fn join(&mut self) -> Token {
        let last = u8::try_from(self.number + 1).unwrap();
        let underlay = IpAddr::from([198, 51, 100, last]);
        let own = Token::from_bits(u128::from(last));
        let request = SessionRequest {
            install: own,
            boot: own,
            underlay,
            addresses: vec![underlay],
            on_link: [].into(),
            roles: [].into(),
            external: [].into(),
            version: String::new(),
        };
        let path = paths::session(&self.host());
        loop {
            let call = Call::with_body(Method::POST, path.clone(), &request).unwrap();
            match self.client.call::<Session>(&call).await {
                Ok(session) => return session.session,
                Err(error) => self.pause(&error).await,
            }
        }
    }

    fn host(&self) -> limpet_net_types::HostName {
        format!("h{}", self.number).parse().unwrap()
    }

    async fn beat(&self, session: Token) -> Result<(), ()> {
        let path = paths::heartbeat(&self.host());
        let call = Call::with_body(Method::POST, path, &Heartbeat { session }).unwrap();
        match self.client.call::<serde::de::IgnoredAny>(&call).await {
            Err(ClientError::Refused(error)) if error.code == ErrorCode::SessionLost => Err(()),
            // One that is not heard is said again.
            _ => Ok(()),
        }
    }

    /// Claims. An error if the outcome is not known, with what may be held, or the session is lost.
    async fn claim(
        &mut self,
        session: Token,
        container: usize,
    ) -> Result<Option<Running>, Option<Running>> {
        let uid = Uid::from_bits(self.dice.bits());
        let name = match self.dice.below(3) {
            0 => Some(format!("web-{}", self.dice.below(8))),
            _ => None,
        };
        let key = AttachmentKey {
            host: self.host(),
            network: "blue".parse().unwrap(),
            container: format!("k{container}").parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        };
        let wanted = Wanted {
            netns: "/n".to_owned(),
            name: name.as_ref().map(|name| name.parse().unwrap()),
            ..Wanted::default()
        };
        let request = ClaimRequest { session, uid, wanted };
        let call = Call::with_body(Method::PUT, paths::claim(&key), &request).unwrap();
        let asked = Instant::now();
        let place = {
            let mut history = self.history.lock().unwrap();
            let (granted, ending, ended) = (None, None, None);
            history.holds.push(Hold { uid, name, asked, granted, ending, ended });
            history.holds.len() - 1
        };
        let attempted = self.client.attempt::<Claimed>(&call).await;
        let running = Running { key, uid, place };
        match attempted.answer {
            Ok(Claimed { attachment, revision, .. }) => {
                self.is_unsure = attempted.unsure;
                let mut history = self.history.lock().unwrap();
                history.holds[place].granted =
                    Some((Instant::now(), revision, addresses(&attachment)));
                Ok(Some(running))
            }
            Err(error) if attempted.unsure || error.outcome_unknown() => Err(Some(running)),
            Err(ClientError::Refused(error)) if error.code == ErrorCode::SessionLost => Err(None),
            Err(_) => {
                // It was refused: it never held anything.
                let now = Instant::now();
                self.history.lock().unwrap().holds[place].ended = Some((now, 0));
                Ok(None)
            }
        }
    }

    /// Ends until that is confirmed; returns the session in which it was.
    async fn end(&mut self, mut session: Token, held: &Running) -> Token {
        self.history.lock().unwrap().holds[held.place].ending = Some(Instant::now());
        loop {
            let request = EndRequest { session, uid: held.uid, reason: EndReason::Detached };
            let call =
                Call::new(Method::DELETE, paths::claim(&held.key)).with_query(&request).unwrap();
            match self.client.call::<Ended>(&call).await {
                Ok(Ended { revision }) => {
                    let ended = Some((Instant::now(), revision));
                    self.history.lock().unwrap().holds[held.place].ended = ended;
                    return session;
                }
                Err(ClientError::Refused(error)) if error.code == ErrorCode::SessionLost => {
                    session = self.join().await;
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Reads who holds what, as an operator does.
    async fn look(&self) {
        if let Some(look) = look(&self.client).await {
            self.history.lock().unwrap().looks.push(look);
        }
    }

    async fn pause(&mut self, error: &ClientError) {
        let late = self.until + Duration::from_secs(90);
        assert!(Instant::now() < late, "nobody answers: {error:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

fn addresses(attachment: &Attachment) -> Vec<IpAddr> {
    attachment.addresses.iter().map(|held| held.address).collect()
}

/// Reads who holds what; none if nobody answers.
pub(crate) async fn look(client: &Client) -> Option<Look> {
    let asked = Instant::now();
    let call = Call::new(Method::GET, format!("{}?limit=5000", paths::ATTACHMENTS));
    let Listing { items, revision, .. } = client.call::<Listing<Attachment>>(&call).await.ok()?;
    let held = items.iter().flat_map(|attachment| {
        addresses(attachment).into_iter().map(|address| (address, attachment.uid))
    });
    Some(Look { asked, answered: Instant::now(), revision, held: held.collect() })
}
