//! All services of a recipe: their order, their form, and what no two of them may share.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::listen::HOLDER;
use super::{Service, ServiceFile, ServiceName};
use crate::project::limits::Asked;
use crate::project::yaml::with_hint;

/// No recipe declares more services than this.
const MOST: usize = 50;

/// The services as written, in their order: they start in it, and stop in the opposite one.
#[derive(Default)]
pub struct ServicesFile(Vec<(ServiceName, ServiceFile)>);

impl ServicesFile {
    /// What the services ask for, each with the name of its service.
    pub fn asks(&self) -> impl Iterator<Item = (&str, Asked)> {
        self.0.iter().flat_map(|(name, file)| file.limits().asked().map(|what| (name.as_str(), what)))
    }

    /// The services that are meant.
    ///
    /// # Errors
    /// The name of the service and the message, where two keys do not go together.
    pub fn resolve(self) -> Result<Vec<Service>, (String, String)> {
        let mut all: Vec<Service> = Vec::new();
        for (name, file) in self.0 {
            let shown = name.to_string();
            if shown == HOLDER {
                return Err((shown, format!("`{HOLDER}` is what holds the sockets of services: choose another name")));
            }
            let service = file.resolve(name).map_err(|message| (shown.clone(), message))?;
            let clash = |other: &&Service| other.listens_where(&service).is_some();
            if let Some(other) = all.iter().find(clash) {
                let message = format!("it listens where the service {} does", other.name);
                return Err((shown, with_hint(&message, "each address belongs to one service")));
            }
            if let Some(other) = all.iter().find(|other| other.clashes_with(&service)) {
                let hint = "each instance takes one port, counted from the first on: choose others";
                return Err((
                    shown,
                    with_hint(&format!("its ports and those of the service {} overlap", other.name), hint),
                ));
            }
            all.push(service);
        }
        Ok(all)
    }
}

impl<'de> Deserialize<'de> for ServicesFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = ServicesFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("services by name")
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<ServicesFile, E> {
                Ok(ServicesFile::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<ServicesFile, A::Error> {
                let mut all: Vec<(ServiceName, ServiceFile)> = Vec::new();
                while let Some(name) = entries.next_key::<ServiceName>()? {
                    if all.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format!("the service `{name}` stands here twice")));
                    }
                    if all.len() == MOST {
                        return Err(A::Error::custom(format!("more than {MOST} services")));
                    }
                    all.push((name, entries.next_value::<Shaped>()?.0));
                }
                Ok(ServicesFile(all))
            }
        }
        deserializer.deserialize_any(InOrder)
    }
}

/// A service in its form, which whoever writes another one is told.
struct Shaped(ServiceFile);

impl<'de> Deserialize<'de> for Shaped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Shaped;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&with_hint("a map", "a service is written so: web: {run: bin/web}"))
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Shaped, A::Error> {
                ServiceFile::deserialize(MapAccessDeserializer::new(entries)).map(Shaped)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusal, services};

    #[test]
    fn two_services_have_no_port_in_common() {
        let error = refusal("  web: {run: x, port: 8000, count: 3}\n  api: {run: x, port: 8002}\n");
        assert!(
            error.starts_with("mc_project.yaml:3:3: `services.api`: its ports and those of the service web"),
            "{error}"
        );
        assert_eq!(services("  web: {run: x, port: 8000, count: 2}\n  api: {run: x, port: 8002}\n").len(), 2);
        let apart = "  web: {run: x, port: 8000, modes: [final]}\n  dev: {run: x, port: 8000, modes: [cooking]}\n";
        assert_eq!(services(apart).len(), 2);
        assert_eq!(services("  web: {run: x, port: 8000}\n  api: {run: x, port: $PORT}\n").len(), 2);
    }
}
